from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DataError, MissingExtraError
from engine.payload.folder import INDEX, SINGLE
from engine.payload.hub import HubModel, fetch_hub, hub_download_bytes
from engine.system.resources import data_path

REVISION = "a" * 40
MODEL = "someone/tiny"
SHA = hashlib.sha256(b"weights").hexdigest()


class Hub(ThreadingHTTPServer):
    """A server on loopback with the few endpoints of the hub that a download uses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {name: data_path("tiny_model", name).read_bytes() for name in ("config.json", "tokenizer.json")}
        self.weights: dict[str, str | None] = {SINGLE: SHA}
        self.sha = REVISION
        self.fault: tuple[int, str] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the test's output clean."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _listing(self) -> bytes:
        siblings: list[dict[str, Any]] = [{"rfilename": name, "size": 1} for name in self.server.files]
        for name, sha in self.server.weights.items():
            lfs = {"sha256": sha, "size": 7, "pointerSize": 130}
            siblings.append({"rfilename": name, "size": 7, **({"lfs": lfs} if sha else {})})
        return json.dumps({"id": MODEL, "sha": self.server.sha, "siblings": siblings}).encode()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if self.server.fault:
            status, code = self.server.fault
            self._answer(status, b"{}", X_Error_Code=code)
        elif path == f"/api/models/{MODEL}/revision/{REVISION}":
            self._answer(200, self._listing(), Content_Type="application/json")
        elif (name := path.removeprefix(f"/{MODEL}/resolve/{REVISION}/")) in self.server.files:
            body = self.server.files[name]
            self._answer(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=REVISION)
        else:
            self._answer(404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetched(hub: Hub, cache: Path) -> HubModel:
    return fetch_hub(MODEL, REVISION, endpoint=hub.endpoint, cache=cache)


def refusal(hub: Hub, cache: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        fetched(hub, cache)
    return caught.value


def test_configuration_and_tokenizer_are_downloaded_and_the_weights_are_not(hub: Hub, tmp_path: Path) -> None:
    model = fetched(hub, tmp_path)
    assert model.tokenizer.read_bytes() == hub.files["tokenizer.json"]
    assert model.shape.layers == 2
    assert model.listing() == {
        "id": MODEL,
        "revision": REVISION,
        "files": {SINGLE: {"sha256": SHA, "size": 7}},
    }
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_index_says_which_shards_belong_to_the_model(hub: Hub, tmp_path: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    hub.weights = {"consolidated.safetensors": SHA, **dict.fromkeys(reversed(shards), SHA)}
    hub.files[INDEX] = json.dumps({"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}).encode()
    assert list(fetched(hub, tmp_path).weights) == shards
    assert hub_download_bytes(MODEL, REVISION, endpoint=hub.endpoint, cache=tmp_path) == 2 * 7


def test_weights_whose_digest_the_hub_does_not_list_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.weights = {SINGLE: None}
    assert refusal(hub, tmp_path).code == "model_weights_invalid"
    hub.weights = {"pytorch_model.bin": SHA}
    assert refusal(hub, tmp_path).code == "model_weights_invalid"


@pytest.mark.parametrize(
    "index",
    [b"{", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": "model.safetensors", "b": "absent.safetensors"}}'],
)
def test_an_unusable_index_is_refused(hub: Hub, tmp_path: Path, index: bytes) -> None:
    hub.files[INDEX] = index
    assert refusal(hub, tmp_path).code in ("model_index_invalid", "model_weights_invalid")


def test_another_revision_than_the_pinned_one_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.sha = "b" * 40
    assert refusal(hub, tmp_path).code == "hub_model_unknown"


def test_a_model_without_a_tokenizer_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.files["tokenizer.json"]
    assert refusal(hub, tmp_path).code == "model_file_missing"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ((404, "RepoNotFound"), "hub_model_unknown"),
        ((404, "RevisionNotFound"), "hub_model_unknown"),
        ((403, "GatedRepo"), "hub_gated"),
        ((400, ""), "hub_unreachable"),
    ],
)
def test_a_fault_of_the_hub_has_its_own_code(hub: Hub, tmp_path: Path, fault: tuple[int, str], code: str) -> None:
    hub.fault = fault
    assert refusal(hub, tmp_path).code == code


def test_an_invalid_model_name_is_refused(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        fetch_hub("../../etc", REVISION, endpoint=hub.endpoint, cache=tmp_path)
    assert caught.value.code == "hub_model_unknown"


def test_a_hub_that_does_not_answer_is_reported_as_unreachable(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(DataError) as caught:
        fetch_hub(MODEL, REVISION, endpoint=endpoint, cache=tmp_path)
    assert caught.value.code == "hub_unreachable"
    assert "--model" in caught.value.hint


def test_without_the_hubs_library_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from engine.payload.hub import fetch_hub\n"
        "try: fetch_hub('a/b', 'c' * 40)\n"
        "except Exception as error: print(type(error).__name__, error.hint)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith(MissingExtraError.__name__)
    assert "glasshouse[local]" in output
