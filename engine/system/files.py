"""Files that only their owner can read, written atomically, and read without following links."""

from __future__ import annotations

import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from engine.errors import SealingError


@contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """A file of mode 0600 that replaces `path` when the block succeeds; otherwise it is removed. Raises `OSError`."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_private(path: Path, data: bytes) -> None:
    """Write `data` to `path` (0600) atomically, synced to disk."""
    with private_file(path) as file:
        file.write(data)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path, what: str) -> io.BufferedReader:
    """Open a regular file; raises `SealingError` (`payload_missing`) if it is absent, a link or a special file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SealingError(
            f"The sealed file {what} is missing or is a link.",
            "Transfer the package again.",
            code="payload_missing",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SealingError(
            f"The sealed file {what} is not a regular file.",
            "Transfer the package again.",
            code="payload_missing",
        )
    return os.fdopen(descriptor, "rb")
