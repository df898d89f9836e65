"""No answer of a server can stop the dead-man's switch: a bad one counts as a refusal."""

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
    """Servers that give every request the same bytes, and record the requests in `received`."""
    listening: list[socket.socket] = []

    def start(reply: bytes, *, slow: bool = False, received: list[bytes] | None = None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                    with client:
                        request = client.recv(65536)
                        if received is not None:
                            received.append(request)
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
def test_an_unreadable_answer_counts_as_a_refusal(serve: Callable[..., str], reply: bytes) -> None:
    assert deadman.send(serve(reply), "key", "POST", b"{}") is False


def test_a_dripping_answer_times_out(serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadman, "TIMEOUT", 1.0)
    began = time.monotonic()
    assert deadman.send(serve(OK + b"X: " + b"x" * 3000, slow=True), "key", "DELETE", None) is False
    assert time.monotonic() - began < 60.0  # five minutes without the timeout


def test_the_key_does_not_follow_a_redirect(serve: Callable[..., str]) -> None:
    received: list[bytes] = []
    elsewhere = serve(OK + b"Content-Length: 2\r\n\r\n{}", received=received)
    moved = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert deadman.send(serve(moved.encode()), "key", "POST", b"{}") is False
    assert received == []
