"""Atomic transfers of files to and from an allocation.

An upload goes to `NAME.part`, is resumed there after a lost link, synced, verified by size and SHA-256 on the
allocation and renamed into place. A download is bounded and follows no links.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import posixpath
import re
import shutil
from collections import deque
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

import asyncssh

from engine.errors import RemoteError
from engine.remote.failures import disk_full, translated
from engine.remote.session import SshSession
from engine.system.files import open_named, private_file
from engine.wire import sha256_hex

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator


T = TypeVar("T")

BLOCK_BYTES: Final = 1024 * 1024
IN_FLIGHT: Final = 16
WINDOW_BYTES: Final = BLOCK_BYTES * IN_FLIGHT
READ_BACK_BYTES: Final = 256 * 1024
SPARE_BYTES: Final = 4 * 1024 * 1024
HASH_SECONDS_PER_GIB: Final = 60.0
_INBOX_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
HASH_SCRIPT: Final = 'openssl dgst -sha256 -r <"$1" 2>/dev/null || sha256sum <"$1"'


async def upload(
    session: SshSession,
    source: bytes | Path,
    remote: str,
    mode: int = 0o600,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Upload `source` to `remote` and return its SHA-256 in hex; a file there with that hash is kept.

    `progress(sent, total)` is called as bytes arrive. Raises `remote_disk_full`, `upload_failed` (the allocation stored
    other bytes), `local_unreadable`, `remote_not_a_file`, `link_lost`.
    """
    total, digest = await asyncio.to_thread(_identity, source)
    if await session.size(remote) == total and await _remote_digest(session, remote, total) == digest:
        await _chmod(session, remote, mode)
        return digest
    part = f"{remote}.part"
    for resume in (True, False):
        start = await _resume_at(session, part, total) if resume else 0
        await _require_space(session, remote, total - start)
        await _send(session, source, part, start, total, mode, progress)
        if await session.size(part) == total and await _remote_digest(session, part, total) == digest:
            sftp = await session.sftp()
            with translated("renaming", part):
                await sftp.posix_rename(part, remote)
            return digest
        if start == 0:
            break
    await _require_space(session, remote, 1)
    raise RemoteError(
        f"The bytes that arrived at {remote} differ from those that were sent.",
        "Check the allocation's disk.",
        code="upload_failed",
    )


async def put_inbox(session: SshSession, run_dir: str, name: str, data: bytes) -> None:
    """Send a message to the supervisor: `data` appears atomically as `inbox/NAME` in its run folder.

    Raises as `upload`, and `remote_path_refused` for a name that could leave that folder.
    """
    if not _INBOX_NAME.fullmatch(name):
        raise RemoteError(
            "An inbox name may have only letters, digits, dots, dashes and underscores.", code="remote_path_refused"
        )
    await upload(session, data, posixpath.join(run_dir, "inbox", name))


async def download(session: SshSession, remote: str, local: Path, max_bytes: int) -> str:
    """Download a regular file of at most `max_bytes` to `local` (mode 0600); returns its SHA-256 in hex.

    Raises `remote_missing`, `remote_not_a_file`, `remote_too_large`, `remote_changed`, `local_disk_full`,
    `local_unwritable`, `link_lost`.
    """
    size = await session.size(remote)
    if size is None:
        raise RemoteError(f"{remote} does not exist on the allocation.", code="remote_missing")
    if size > max_bytes:
        raise RemoteError(f"{remote} has {size} bytes; at most {max_bytes} are accepted.", code="remote_too_large")
    _require_local_space(local, size)
    try:
        with private_file(local) as target:
            digest = await _fetch(session, remote, size, target.write)
    except OSError as error:
        raise RemoteError(
            f"{local} cannot be written: {error.strerror}.", "Free some space.", code="local_unwritable"
        ) from error
    return digest


def _require_local_space(local: Path, size: int) -> None:
    """Raise `local_disk_full` before a file is fetched for which this machine has no room."""
    try:
        free = shutil.disk_usage(local.parent).free
    except OSError:
        return  # writing reports the reason
    if free < size + SPARE_BYTES:
        raise RemoteError(
            f"{local} needs {size:,} bytes, and the disk has {free:,} left.",
            "Free some space there, then continue with `glasshouse resume`.",
            code="local_disk_full",
        )


async def _fetch(session: SshSession, remote: str, size: int, write: Callable[[bytes], object]) -> str:
    sftp = await session.sftp()
    digest = hashlib.sha256()
    with translated("reading", remote):
        async with await sftp.open(remote, "rb", encoding=None) as source:
            parts = ((source.read(length, offset), length) for offset, length in _blocks(0, size))
            async with aclosing(in_order(parts)) as blocks:
                async for read, length in blocks:
                    block = cast("bytes", read)
                    if len(block) != length:
                        raise RemoteError(f"{remote} changed while it was read.", code="remote_changed")
                    digest.update(block)
                    write(block)
    return digest.hexdigest()


def _blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each block from `start` to `end`."""
    for offset in range(start, end, BLOCK_BYTES):
        yield offset, min(BLOCK_BYTES, end - offset)


async def in_order(parts: Iterable[tuple[Coroutine[Any, Any, T], int]]) -> AsyncGenerator[tuple[T, int], None]:
    """Run up to `IN_FLIGHT` transfers concurrently and yield each result, with its number, in order."""
    pending: deque[tuple[asyncio.Task[T], int]] = deque()
    try:
        for transfer, number in parts:
            pending.append((asyncio.create_task(transfer), number))
            if len(pending) == IN_FLIGHT:
                task, done = pending.popleft()
                yield await task, done
        while pending:
            task, done = pending.popleft()
            yield await task, done
    finally:
        for task, _ in pending:
            task.cancel()
        await asyncio.gather(*(task for task, _ in pending), return_exceptions=True)


def _open_source(source: bytes | Path) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_named(source)


def _identity(source: bytes | Path) -> tuple[int, str]:
    """Size and SHA-256 of the data to send."""
    if isinstance(source, bytes):
        return len(source), sha256_hex(source)
    try:
        with open_named(source) as file:
            return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RemoteError(f"{source} cannot be read: {error.strerror}.", code="local_unreadable") from error


async def _resume_at(session: SshSession, part: str, total: int) -> int:
    """The offset to resume at: one window before the end, since concurrent writes may have left holes in the last."""
    arrived = await session.size(part)
    if arrived is None or arrived > total:
        return 0
    return max(0, arrived - WINDOW_BYTES)


async def _require_space(session: SshSession, remote: str, needed: int) -> None:
    """Raise `remote_disk_full` when the allocation reports its free space and it is too small."""
    sftp = await session.sftp()
    folder = posixpath.dirname(remote) or "."
    try:
        with translated("checking the free space at", folder):
            disk = await sftp.statvfs(folder)
    except RemoteError as error:
        if isinstance(error.__cause__, asyncssh.SFTPOpUnsupported):
            return
        raise
    free = (disk.bavail or 0) * (disk.frsize or disk.bsize or 1)
    if free < needed + SPARE_BYTES:
        raise disk_full(remote, needed, free)


async def _send(
    session: SshSession,
    source: bytes | Path,
    part: str,
    start: int,
    total: int,
    mode: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    sftp = await session.sftp()
    flags = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | (0 if start else asyncssh.FXF_TRUNC)
    try:
        with translated("writing", part):
            opened = sftp.open(part, flags, asyncssh.SFTPAttrs(permissions=0o600), encoding=None)
            async with await opened as target:
                with _open_source(source) as file:
                    file.seek(start)
                    parts = (
                        (target.write(file.read(length), offset), offset + length)
                        for offset, length in _blocks(start, total)
                    )
                    async with aclosing(in_order(parts)) as written:
                        async for _, sent in written:
                            if progress:
                                progress(sent, total)
                await target.chmod(mode)
                await _flush(target)
    except OSError as error:
        raise RemoteError(f"{source!r} cannot be read: {error.strerror}.", code="local_unreadable") from error
    except RemoteError as error:
        if isinstance(error.__cause__, asyncssh.SFTPFailure):
            arrived = await session.size(part)
            await _require_space(session, part, total - (arrived or 0))
        raise


async def _flush(target: asyncssh.SFTPClientFile) -> None:
    try:
        await target.fsync()
    except asyncssh.SFTPOpUnsupported:
        return  # not supported; the upload is verified by its hash anyway


async def _chmod(session: SshSession, remote: str, mode: int) -> None:
    sftp = await session.sftp()
    with translated("setting the mode of", remote):
        await sftp.chmod(remote, mode)


async def _remote_digest(session: SshSession, remote: str, size: int) -> str:
    """SHA-256 of a remote file: a large one is hashed there if a tool exists, any other is read back."""
    if size > READ_BACK_BYTES:
        limit = 60.0 + size / 2**30 * HASH_SECONDS_PER_GIB
        result = await session.run(["sh", "-c", HASH_SCRIPT, "sh", remote], timeout=limit)
        digest = result.stdout[:64].decode("ascii", "replace")
        if result.exit_status == 0 and len(digest) == 64:
            return digest
    return await _fetch(session, remote, size, _discard)


def _discard(_block: bytes) -> None:
    """Ignore a block."""
