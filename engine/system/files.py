"""The one way in which the project writes a file of its own: private, whole or not at all, and durable."""

from __future__ import annotations

import os
import secrets
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
