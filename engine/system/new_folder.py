"""A private folder that is written completely or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from engine.system.files import open_named, sync_folder

_BLOCK: Final = 1024 * 1024


def is_free(folder: Path) -> bool:
    """True if `new_folder` can put a folder there: nothing is there yet, or an empty folder that is no link."""
    if folder.is_symlink():
        return False
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder of mode 0700 that becomes `folder` when the block succeeds; when it fails, nothing is left.

    The folder that the block fills has the name of `folder`, so that what depends on the name is right. Raises
    `FileExistsError` unless `is_free`, and `OSError` as the system gives it.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    outer = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    outer.mkdir(mode=0o700)
    try:
        part = outer / folder.name
        part.mkdir(mode=0o700)
        yield part
        _rename(part, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _rename(part: Path, folder: Path) -> None:
    """The system itself refuses to replace anything but an empty folder."""
    try:
        part.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, "it is not an empty folder", str(folder)) from error
        raise


def write_file(path: Path, content: bytes | memoryview | Path) -> None:
    """Write a new file of mode 0600 in such a folder, synced; a `Path` is a regular file to copy, however large.

    Missing folders below the new one are created with mode 0700. Raises `OSError`.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if isinstance(content, Path):
            with open_named(content) as source:
                shutil.copyfileobj(source, file, _BLOCK)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
