"""What a server can do to the dead-man's switch: it is told no, and the switch goes on to its own way."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from engine.providers.runpod import deadman

Serve = Callable[[bytes], str]
OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def _drip(client: socket.socket, reply: bytes) -> None:
    for one in reply:
        client.sendall(bytes([one]))
        time.sleep(0.1)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Servers that give every request the same bytes, and keep what was asked in `asked`."""
    listening: list[socket.socket] = []

    def start(reply: bytes, *, slow: bool = False, asked: list[bytes] | None = None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                    with client:
                        request = client.recv(65536)
                        if asked is not None:
                            asked.append(request)
                        _drip(client, reply) if slow else client.sendall(reply)
                except OSError:
                    if server.fileno() < 0:
                        return

        threading.Thread(target=answer, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in listening:
        server.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"\r\n" + b"[" * 60_000,
        b"",
    ],
    ids=["no HTTP", "a long line", "bad chunks", "deep JSON", "nothing"],
)
def test_an_answer_that_cannot_be_read_is_a_no(serve: Callable[..., str], reply: bytes) -> None:
    assert deadman.send(serve(reply), "key", "POST", b"{}") is False


def test_an_answer_that_drips_is_given_up(serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadman, "TIMEOUT", 0.4)
    began = time.monotonic()
    assert deadman.send(serve(OK + b"X: " + b"x" * 200, slow=True), "key", "DELETE", None) is False
    assert time.monotonic() - began < 3.0


def test_the_key_does_not_follow_a_redirect(serve: Callable[..., str]) -> None:
    asked: list[bytes] = []
    elsewhere = serve(OK + b"Content-Length: 2\r\n\r\n{}", asked=asked)
    moved = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert deadman.send(serve(moved.encode()), "key", "POST", b"{}") is False
    assert asked == []
