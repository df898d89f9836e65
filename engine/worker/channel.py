"""Framed messages between the processes of one allocation, over an inherited socketpair or a pair of pipes.

A frame is a big-endian header (body length, number of descriptors) and a body of canonical JSON. Descriptors
travel beside the first byte (SCM_RIGHTS) and only over a socket. Secrets are never part of a message: they
stay in memfds.
"""

from __future__ import annotations

import array
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Sequence
from typing import Any, Final

from engine.errors import RunError, WireError
from engine.wire import canonical, parse

MAX_MESSAGE_BYTES: Final = 1024 * 1024
MAX_DESCRIPTORS: Final = 128
CLOSED: Final = "channel_closed"
TIMEOUT: Final = "channel_timeout"
OVERSIZE: Final = "channel_oversize"
INVALID: Final = "channel_invalid"

_HEADER: Final = struct.Struct(">IH")
_READ_BYTES: Final = 64 * 1024


class Channel:
    """One end of a message channel.

    `Channel(fd)` takes a connected stream socket; `Channel(read_fd, write_fd)` takes the ends of two pipes
    and carries no descriptors. The channel owns these descriptors and makes them non-blocking. Every failure is
    a `RunError` with one of the codes above; after a `channel_timeout` in `recv` the channel stays usable.
    """

    def __init__(self, fd: int, write_fd: int | None = None) -> None:
        self._socket: socket.socket | None = None
        if write_fd is None:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise RunError("A channel needs a socket, or two pipes.", code=INVALID)
            self._socket = socket.socket(fileno=fd)
        self._read_fd = fd
        self._write_fd = fd if write_fd is None else write_fd
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        parse(canonical({"": ""}))  # loads codecs while files can still be opened
        self._pending = bytearray()
        self._descriptors: list[int] = []
        self._closed = False

    def fileno(self) -> int:
        """The descriptor to wait on for reading."""
        return self._read_fd

    def send(self, message: dict[str, Any], fds: Sequence[int] = (), *, timeout: float | None = None) -> None:
        """Write one message within `timeout` seconds (None: no limit); `fds` are duplicated for the
        receiver.
        """
        body = canonical(message)
        if len(body) > MAX_MESSAGE_BYTES or len(fds) > MAX_DESCRIPTORS:
            raise RunError("A message between processes is too large.", code=OVERSIZE)
        if fds and self._socket is None:
            raise RunError("Descriptors can be sent over a socket only.", code=INVALID)
        deadline = _deadline(timeout)
        view = memoryview(_HEADER.pack(len(body), len(fds)) + body)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while view:
            self._wait(self._write_fd, select.POLLOUT, deadline)
            try:
                if self._socket is None:
                    sent = os.write(self._write_fd, view)
                else:
                    sent = self._socket.sendmsg([view], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError) as error:
                raise _closed() from error
            rights = []
            view = view[sent:]

    def recv(self, timeout: float | None = None) -> tuple[dict[str, Any], list[int]]:
        """The next message and its descriptors (close-on-exec, the caller's to close), within `timeout` s."""
        deadline = _deadline(timeout)
        while True:
            received = self._take()
            if received is not None:
                return received
            self._wait(self._read_fd, select.POLLIN, deadline)
            self._fill()

    def request(
        self, message: dict[str, Any], fds: Sequence[int] = (), *, timeout: float | None = None
    ) -> tuple[dict[str, Any], list[int]]:
        """Send a message and return the answer; the limit applies to each direction."""
        self.send(message, fds, timeout=timeout)
        return self.recv(timeout)

    def close(self) -> None:
        """Close both ends, and the descriptors of messages that were not received."""
        if self._closed:
            return
        self._closed = True
        _close_all(self._descriptors)
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._read_fd)
            os.close(self._write_fd)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, fd: int, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(fd, event)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not poll.poll(None if left is None else left * 1000):
            raise RunError("The other process did not answer in time.", code=TIMEOUT)

    def _fill(self) -> None:
        try:
            data = os.read(self._read_fd, _READ_BYTES) if self._socket is None else self._receive(self._socket)
        except BlockingIOError:
            return
        except ConnectionResetError as error:
            raise _closed() from error
        if not data:
            raise _closed()
        self._pending += data

    def _receive(self, source: socket.socket) -> bytes:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
        data, ancillary, flags, _ = source.recvmsg(_READ_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self._descriptors.extend(received)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > 2 * MAX_DESCRIPTORS:
            raise RunError("A message carries more descriptors than allowed.", code=OVERSIZE)
        return data

    def _take(self) -> tuple[dict[str, Any], list[int]] | None:
        if len(self._pending) < _HEADER.size:
            return None
        length, count = _HEADER.unpack_from(self._pending)
        if length > MAX_MESSAGE_BYTES or count > MAX_DESCRIPTORS:
            raise RunError("A message between processes is too large.", code=OVERSIZE)
        end = _HEADER.size + length
        if len(self._pending) < end:
            return None
        if len(self._descriptors) < count:
            raise RunError("A message lacks descriptors that it announced.", code=INVALID)
        body = bytes(self._pending[_HEADER.size : end])
        del self._pending[:end]
        fds, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        try:
            message = parse(body)
        except WireError as error:
            _close_all(fds)
            raise RunError("A message between processes is not JSON.", code=INVALID) from error
        if not isinstance(message, dict):
            _close_all(fds)
            raise RunError("A message between processes is not a JSON object.", code=INVALID)
        return message, fds


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets for a channel that carries descriptors; neither is inheritable."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _closed() -> RunError:
    return RunError("The other process closed its channel.", code=CLOSED)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()
