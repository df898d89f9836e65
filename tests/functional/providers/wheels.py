"""A package index on loopback with two tiny wheels, and the lock that names them."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAMES = ("glasshouse-test-a", "glasshouse-test-b")
VERSION = "1.2.3"


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def wheel(name: str) -> tuple[str, bytes]:
    """File name and bytes of a wheel whose module has its version."""
    module = name.replace("-", "_")
    info = f"{module}-{VERSION}.dist-info"
    files = {
        f"{module}/__init__.py": f'VERSION = "{VERSION}"\n'.encode(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n".encode(),
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {module}:main\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return f"{module}-{VERSION}-py3-none-any.whl", made.getvalue()


class Index:
    """PEP 503 over HTTP; the wheels are held back until `gate` is set, `fetched` are those that were sent."""

    def __init__(self) -> None:
        self.files = dict(map(wheel, NAMES))
        self.gate = threading.Event()
        self.gate.set()
        self.fetched: list[str] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/").rpartition("/")[2]
                if name in index.files:
                    if not index.gate.wait(60):
                        return
                    index.fetched.append(name)
                    body = index.files[name]
                else:
                    prefix = name.replace("-", "_")
                    links = [f'<a href="/files/{file}">{file}</a>' for file in index.files if file.startswith(prefix)]
                    body = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html" if name not in index.files else "application/zip")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple/"

    def lock(self, *, disk_gb: int = 0, wrong: bool = False, cuda: str = "", pythons: str = "3.11 3.12 3.13") -> bytes:
        """A lock of both wheels; `wrong` gives the last one a wrong hash."""
        lines = [f"# python: {pythons}", "# machine: x86_64", "# glibc: 2.17", f"# disk-gb: {disk_gb}"]
        lines += [f"# cuda: {cuda}"] if cuda else []
        for name, content in zip(NAMES, self.files.values(), strict=True):
            hashed = content + b"!" if wrong and name == NAMES[-1] else content
            lines += [f"{name}=={VERSION} \\", f"    --hash=sha256:{hashlib.sha256(hashed).hexdigest()}"]
        return ("\n".join(lines) + "\n").encode()

    def serve(self) -> None:
        """Serve until `close`."""
        self._server.serve_forever(0.05)

    def close(self) -> None:
        """Release all held requests and stop."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def package_index() -> Iterator[Index]:
    """An index that serves during the context."""
    made = Index()
    thread = threading.Thread(target=made.serve)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join()
