"""Weights of a hub model, downloaded in a subprocess from a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from engine.plan import Model, dump_plan, preset
from engine.wire import sha256_hex
from engine.worker.job import Job
from tests.needs import LOCAL_EXTRA

pytest.importorskip("huggingface_hub", reason=LOCAL_EXTRA)
CONTENT = os.urandom(4096)
REVISION = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_canaryCanaryCanaryCanaryCanary"
SCRIPT = """
import json, os, sys
from pathlib import Path
import msgspec
from engine.errors import RunError
from engine.worker import hub_weights
from engine.worker.job import Job

job = msgspec.json.decode(sys.argv[1], type=Job)
try:
    found = hub_weights.fetch(job, Path(sys.argv[2]))
    print(json.dumps({name: os.readlink(f"/proc/self/fd/{fd}") for name, fd in found.items()}))
except RunError as error:
    print(json.dumps({"error": error.code}))
"""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str | None]]]:
    """A hub with one file at one revision: its address, and the credentials that it was sent."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(200 if self.path == f"/a/model/resolve/{REVISION}/model.safetensors" else 404)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            """Nothing on the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()
    thread.join()


def _job(digest: str) -> bytes:
    plan = msgspec.structs.replace(preset("demo"), model=Model(source="hub", name="a/model", revision=REVISION))
    job = Job(
        run_id="run",
        allocation_id="pod",
        plan=dump_plan(plan),
        plan_digest="",
        policy={},
        policy_digest="",
        manifest_digest=None,
        payload_files={},
        hub_weights={"model.safetensors": digest},
        hub_revision=REVISION,
        model_type="qwen2",
        noise_seed=1,
        run_public_key="",
        recipient_public_key="",
        ssh_host_key_digest="",
    )
    return msgspec.json.encode(job)


def _fetch(home: Path, run: Path, address: str, digest: str, **more: str) -> dict[str, str]:
    (home / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
    (home / ".cache" / "huggingface" / "token").write_text(TOKEN)
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    env |= {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", **more}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, _job(digest).decode(), str(run)], env=env, capture_output=True, check=True
    )
    files: dict[str, str] = json.loads(result.stdout)
    return files


def test_the_weights_are_cached_beside_the_run_and_no_token_is_sent(
    hub: tuple[str, list[str | None]], tmp_path: Path
) -> None:
    address, credentials = hub
    run = tmp_path / "root" / "run"
    found = _fetch(tmp_path, run, address, sha256_hex(CONTENT), HF_HOME=f"{tmp_path}/elsewhere")
    (path,) = found.values()
    assert list(found) == ["weights-00001.safetensors"]
    assert path.startswith(f"{tmp_path}/root/hub/")
    assert Path(path).read_bytes() == CONTENT
    assert credentials
    assert set(credentials) == {None}
    assert not (tmp_path / "elsewhere").exists()
    assert [one.name for one in (tmp_path / ".cache" / "huggingface").iterdir()] == ["token"]


def test_a_wrong_digest_and_a_file_missing_on_the_hub_are_refused(
    hub: tuple[str, list[str | None]], tmp_path: Path
) -> None:
    run = tmp_path / "root" / "run"
    assert _fetch(tmp_path, run, hub[0], "0" * 64) == {"error": "weights_changed"}
    absent = _fetch(tmp_path, tmp_path / "other" / "run", f"{hub[0]}/absent", sha256_hex(CONTENT))
    assert absent == {"error": "hub_unreachable"}


def test_on_the_operators_own_machine_the_operators_cache_and_login_are_used(
    hub: tuple[str, list[str | None]], tmp_path: Path
) -> None:
    address, credentials = hub
    found = _fetch(
        tmp_path, tmp_path / "root" / "run", address, sha256_hex(CONTENT), GLASSHOUSE_ALLOCATION=str(tmp_path)
    )
    (path,) = found.values()
    assert path.startswith(f"{tmp_path}/.cache/huggingface/hub/")
    assert f"Bearer {TOKEN}" in credentials
