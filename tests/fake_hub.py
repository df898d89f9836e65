"""A model hub on loopback with the few endpoints that a download uses, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from safetensors.numpy import save

from engine.payload.listing import SINGLE
from engine.payload.shape import read_config
from engine.payload.weights import tiny_layout, tiny_weights
from engine.system.resources import data_path

REVISION: Final = "a" * 40
MODEL: Final = "someone/tiny"
TOKEN: Final = "hf_canaryCanaryCanaryCanaryCanary"
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d+)")


class FakeHub(ThreadingHTTPServer):
    """One model at one revision. Files that end in .safetensors or .bin are listed with a digest, as large files are.

    `gated` and `private` are as on the hub: files of a gated model need a token, a private model is absent without one.
    `closed`: the listing is public and the weights need a token nevertheless. `fault`: status and error code of every
    answer. `answers`: more headers of every answer. `tokens` are the credentials that were sent, by path.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {name: data_path("tiny_model", name).read_bytes() for name in ("config.json", "tokenizer.json")}
        self.files[SINGLE] = save(tiny_weights(5, read_config(self.files["config.json"])[1]))
        self.undigested: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.sha = REVISION
        self.gated: str | bool = False
        self.private = False
        self.closed = False
        self.fault: tuple[int, str] | None = None
        self.tokens: list[tuple[str, str | None]] = []

    @property
    def endpoint(self) -> str:
        """The hub's address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def become_large(self) -> None:
        """List the sizes and headers of Qwen2.5-7B; only the headers exist."""
        self.change_config(
            hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
            intermediate_size=18944, vocab_size=152064, max_position_embeddings=32768, tie_word_embeddings=False,
            layer_types=None,
        )  # fmt: skip
        layout = tiny_layout(read_config(self.files["config.json"])[1])
        layout["lm_head.weight"] = layout["model.embed_tokens.weight"]
        header: dict[str, Any] = {}
        end = 0
        for name, size in layout.items():
            start, end = end, end + 2 * math.prod(size)
            header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
        body = json.dumps(header).encode()
        self.files[SINGLE] = struct.pack("<Q", len(body)) + body
        self.sizes[SINGLE] = len(self.files[SINGLE]) + end

    def change_config(self, **changes: Any) -> None:
        """Change fields of config.json; None removes one."""
        config = {**json.loads(self.files["config.json"]), **changes}
        self.files["config.json"] = json.dumps({k: v for k, v in config.items() if v is not None}).encode()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

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
        hub = self.server
        siblings: list[dict[str, Any]] = []
        for name, body in hub.files.items():
            size = hub.sizes.get(name, len(body))
            entry: dict[str, Any] = {"rfilename": name, "size": size}
            if name.endswith((".safetensors", ".bin")) and name not in hub.undigested:
                entry["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": size, "pointerSize": 130}
            siblings.append(entry)
        document = {"id": MODEL, "sha": hub.sha, "private": hub.private, "gated": hub.gated, "siblings": siblings}
        return json.dumps(document).encode()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.split("?")[0]
        authorization = self.headers.get("Authorization")
        hub.tokens.append((path, authorization))
        known = authorization == f"Bearer {TOKEN}"
        name = path.removeprefix(f"/{MODEL}/resolve/{REVISION}/")
        if hub.fault:
            self._answer(hub.fault[0], b"{}", X_Error_Code=hub.fault[1])
        elif hub.private and not known:
            self._answer(401, X_Error_Code="RepoNotFound")
        elif path == f"/api/models/{MODEL}/revision/{REVISION}":
            self._answer(200, self._listing(), Content_Type="application/json")
        elif path.startswith(f"/api/models/{MODEL}/"):
            self._answer(404, X_Error_Code="RevisionNotFound")
        elif path.startswith("/api/models/"):
            self._answer(401, X_Error_Code="RepoNotFound")
        elif name not in hub.files:
            self._answer(404, X_Error_Code="EntryNotFound")
        elif hub.gated and not known:
            self._answer(401, X_Error_Code="GatedRepo")
        elif hub.closed and name.endswith(".safetensors") and not known:
            self._answer(401)
        else:
            self._file(hub.files[name])

    def _file(self, body: bytes) -> None:
        digest = f'"{hashlib.sha256(body).hexdigest()}"'
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, body, ETag=digest, X_Repo_Commit=REVISION)
        else:
            first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
            span = f"bytes {first}-{last}/{len(body)}"
            self._answer(206, body[first : last + 1], ETag=digest, X_Repo_Commit=REVISION, Content_Range=span)

    do_HEAD = do_GET


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub that answers while the context lasts."""
    with FakeHub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
