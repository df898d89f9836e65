"""The one way in which the project writes a file of its own, and the one in which it reads a file that a person names.

Written: private, whole or not at all, and durable. Read: a regular file only, at once, and never more than a limit.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def private_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file of mode 0600 that replaces `path` when the block succeeds; when it fails, `path` stays as it was.

    Once the block has ended the file survives a power cut: its bytes are synced before the rename, its folder after it.
    `durable=False` leaves out both syncs, for what may be lost without harm. Raises `OSError` as the system gives it.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_private(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path` as `private_file` does."""
    with private_file(path, durable=durable) as file:
        file.write(data)


def open_named(path: Path) -> io.BufferedReader:
    """Open a regular file that a person names; links are followed.

    Raises `OSError` at once, its `strerror` a phrase for people: a FIFO would block for ever, a device never ends, and
    opening some devices already does something.
    """
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
    except ValueError as error:  # a zero byte in the name
        raise OSError(errno.EINVAL, "its name is not valid", str(path)) from error
    if not is_regular:
        raise _not_regular(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged since
        os.close(descriptor)
        raise _not_regular(path)
    return os.fdopen(descriptor, "rb")


def unbuffered(path: Path) -> io.FileIO:
    """A file as `open_named` opens it, without a buffer that would keep parts of it in memory."""
    with open_named(path) as file:
        return io.FileIO(os.dup(file.fileno()), "rb")


def read_named(path: Path, most: int) -> bytes:
    """The bytes of a file as `open_named` opens it; raises `OSError` also for more than `most`, however it grows."""
    with open_named(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return data


def _not_regular(path: Path) -> OSError:
    return OSError(errno.EINVAL, "it is not a regular file", str(path))


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """The bytes of a regular file of our own, mapped: however large it is, it takes no memory that others lack.

    Raises `OSError` as `open_named`. The file must not be cut meanwhile.
    """
    with open_named(path) as file:
        if not os.fstat(file.fileno()).st_size:
            yield memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping, memoryview(mapping) as view:
            yield view


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def overwrite(path: Path) -> None:
    """Replace the bytes of a secret file by zeros, synced. Raises `OSError`.

    A file system that copies on write, and flash storage below any, may keep the old blocks.
    """
    with path.open("r+b") as file:
        file.write(bytes(os.fstat(file.fileno()).st_size))
        file.flush()
        os.fsync(file.fileno())
