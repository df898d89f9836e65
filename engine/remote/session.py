"""One SSH session to an allocation: a pinned connection, bounded commands and file operations."""

from __future__ import annotations

import asyncio
import posixpath
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar, cast

import asyncssh

from engine.errors import RemoteError
from engine.remote.connect import connect
from engine.remote.connections import Connections
from engine.remote.endpoint import Endpoint, LinkLimits
from engine.remote.failures import link_lost, not_a_file, translated
from engine.remote.sftp_start import start_sftp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

T = TypeVar("T")

MAX_OUTPUT_BYTES: Final = 1024 * 1024
READ_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a remote command. `exit_status` is None when the server sent none, as after a signal."""

    exit_status: int | None
    stdout: bytes
    stderr: bytes


class SshSession:
    """An open session; every method raises `RemoteError`, with code `link_lost` when the connection ended."""

    def __init__(self, connections: Connections, limits: LinkLimits) -> None:
        self._connections = connections
        self._connection = connections.first
        self._limits = limits
        self._sftp: asyncssh.SFTPClient | None = None
        self._opening = asyncio.Lock()

    @classmethod
    async def connect(cls, endpoint: Endpoint, limits: LinkLimits | None = None) -> Self:
        """Connect and log in; raises as `engine.remote.connect.connect`."""
        chosen = limits or LinkLimits()

        async def again() -> asyncssh.SSHClientConnection:
            return await connect(endpoint, chosen)

        return cls(Connections(await again(), again), chosen)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_open(self) -> bool:
        """False once the connection has ended."""
        return not self._connection.is_closed()

    async def close(self) -> None:
        """Close every connection; a frozen one is aborted after two seconds."""
        connections = self._connections.all()
        for connection in connections:
            connection.close()
        try:
            await asyncio.wait_for(asyncio.gather(*(one.wait_closed() for one in connections)), 2.0)
        except TimeoutError:
            for connection in connections:
                connection.abort()

    async def call(self, operation: Callable[[SshSession], Awaitable[T]]) -> T:
        """Run one operation on this session, without reconnecting."""
        return await operation(self)

    async def sftp(self) -> asyncssh.SFTPClient:
        """The session's SFTP client, started on first use.

        Raises `RemoteError`: `sftp_unavailable` where the server has none, `login_output` where something is printed
        before it starts.
        """
        async with self._opening:
            if self._sftp is None:
                self._sftp = await start_sftp(self._connections)
            return self._sftp

    async def run(
        self,
        argv: Sequence[str],
        stdin: bytes | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # limits the wait; the remote process keeps running
        max_output: int = MAX_OUTPUT_BYTES,
    ) -> Result:
        """Run a command and wait for its end.

        Raises `remote_timeout` after `timeout` seconds (by default the link's `command` limit; the remote
        process may keep running) and `remote_output_too_long` when stdout or stderr passes `max_output` bytes.
        """
        doing = f"running {argv[0]}"
        with translated(doing):
            connection, process = await self._connections.open(
                lambda one: one.create_process(shlex.join(argv), encoding=None)
            )
        try:
            return await asyncio.wait_for(
                self._finish(connection, process, stdin, max_output, doing), timeout or self._limits.command
            )
        except TimeoutError as error:
            raise RemoteError(
                f"{Path(argv[0]).name} on the allocation did not finish in time.", code="remote_timeout"
            ) from error
        finally:
            process.close()

    async def _finish(
        self,
        connection: asyncssh.SSHClientConnection,
        process: asyncssh.SSHClientProcess[bytes],
        stdin: bytes | None,
        max_output: int,
        doing: str,
    ) -> Result:
        with translated(doing):
            _, stdout, stderr = await asyncio.gather(
                _feed(process.stdin, stdin),
                _drain(process.stdout, max_output),
                _drain(process.stderr, max_output),
            )
            await process.wait_closed()
        if process.exit_status is None and process.exit_signal is None and connection.is_closed():
            raise link_lost(doing)
        status = process.exit_status if process.exit_signal is None else None
        return Result(status, stdout, stderr)

    async def stat(self, path: str) -> asyncssh.SFTPAttrs | None:
        """The attributes of `path` itself, without following links; None when it does not exist."""
        sftp = await self.sftp()
        try:
            with translated("checking", path):
                return await sftp.lstat(path)
        except RemoteError as error:
            if error.code == "remote_missing":
                return None
            raise

    async def exists(self, path: str) -> bool:
        """True when something exists at `path`, including a dangling link."""
        return await self.stat(path) is not None

    async def size(self, path: str) -> int | None:
        """A regular file's size in bytes, None when absent; raises `remote_not_a_file` for anything else."""
        attrs = await self.stat(path)
        if attrs is None:
            return None
        if not stat.S_ISREG(attrs.permissions or 0) or attrs.size is None:
            raise not_a_file(path)
        return attrs.size

    async def mkdir(self, path: str, mode: int = 0o700) -> None:
        """Create a folder unless it exists; raises `remote_not_a_folder` if something else is there."""
        attrs = await self.stat(path)
        if attrs is not None:
            if not stat.S_ISDIR(attrs.permissions or 0):
                raise RemoteError(f"{path} on the allocation is not a folder.", code="remote_not_a_folder")
            return
        sftp = await self.sftp()
        with translated("creating", path):
            await sftp.mkdir(path, asyncssh.SFTPAttrs(permissions=mode))

    async def remove_tree(self, path: str) -> None:
        """Remove a folder with everything in it, without following links; idempotent.

        Raises `remote_path_refused` for a path that cannot be a run folder, and `remote_failed`.
        """
        if not path.startswith("/") or posixpath.normpath(path) != path or path.count("/") < 2:
            raise RemoteError(f"{path} is not a run folder; nothing was removed.", code="remote_path_refused")
        result = await self.run(["rm", "-rf", "--", path])
        if await self.exists(path):
            raise RemoteError(
                f"{path} on the allocation could not be removed (exit status {result.exit_status}).",
                code="remote_failed",
            )

    async def read_at(self, path: str, offset: int, most: int) -> bytes:
        """Up to `most` bytes of a file from `offset`; empty at its end."""
        sftp = await self.sftp()
        with translated("reading", path):
            async with await sftp.open(path, "rb", encoding=None) as remote:
                block = await read_block(remote, path, offset, most)
        return block


async def read_block(remote: asyncssh.SFTPClientFile, path: str, offset: int, most: int) -> bytes:
    """Up to `most` bytes of an open file, read in bounded parts; raises `remote_failed` for a longer reply."""
    parts: list[bytes] = []
    while most:
        length = min(most, READ_BYTES)
        part = cast("bytes", await remote.read(length, offset))
        if len(part) > length:
            raise RemoteError(f"The allocation sent more of {path} than was requested.", code="remote_failed")
        if not part:
            break
        parts.append(part)
        offset += len(part)
        most -= len(part)
    return b"".join(parts)


async def _feed(writer: asyncssh.SSHWriter[bytes], data: bytes | None) -> None:
    try:
        if data:
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        return  # the command ended before reading all of it; its exit status shows why


async def _drain(reader: asyncssh.SSHReader[bytes], most: int) -> bytes:
    collected = bytearray()
    while part := await reader.read(READ_BYTES):
        collected += part
        if len(collected) > most:
            raise RemoteError(
                f"A command on the allocation wrote more than {most} bytes.", code="remote_output_too_long"
            )
    return bytes(collected)
