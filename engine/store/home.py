"""The home folder: the path of its database, and permissions that let only its owner read it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from engine.errors import StoreError

DATABASE: Final = "glasshouse.db"
_FOLDERS: Final = ("keys", "runs", "adapters", "logs", "cache", "tokenizers")


def database_path(home: Path) -> Path:
    """The path of this home's database."""
    return home / DATABASE


def unwritable(path: Path, why: str) -> StoreError:
    """`store_unwritable`: the folder or file cannot be created or written."""
    return StoreError(
        f"The home folder {path} cannot be used: {why}.",
        "Make it writable, or choose another with --home DIR or GLASSHOUSE_HOME.",
        code="store_unwritable",
    )


def full(path: Path) -> StoreError:
    """`store_full`: the disk has no room; the transaction was rolled back."""
    return StoreError(
        f"The disk that holds {path} is full; the last change was not saved.",
        "Free some space there, or choose another home with --home DIR.",
        code="store_full",
    )


def has_database(home: Path) -> bool:
    """Whether this home has a database; raises `StoreError` (`store_unwritable`) if that may not be read."""
    try:
        database_path(home).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unusable(home, error) from error
    return True


def prepare_home(home: Path) -> None:
    """Create the home folder with mode 0700; set that mode on an existing one that others may read.

    A folder that holds other files too keeps its mode. Raises `StoreError` (`store_unwritable`).
    """
    try:
        if not home.is_dir():
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            home.chmod(0o700)
        elif home.stat().st_mode & 0o077 and all(_is_ours(entry.name) for entry in home.iterdir()):
            home.chmod(0o700)
    except OSError as error:
        raise _unusable(home, error) from error


def _is_ours(name: str) -> bool:
    return name in _FOLDERS or name.startswith("glasshouse.")


def _unusable(home: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full(home)
    return unwritable(home, (error.strerror or type(error).__name__).lower())


def create_file(path: Path) -> None:
    """Create an empty file unless it exists, with mode 0600 whatever the umask.

    An existing file is never opened: closing it would release this process's sqlite3 locks on it, which can corrupt the
    database (https://sqlite.org/howtocorrupt.html, 2.2). sqlite3 gives its side files the mode of the database. Raises
    `StoreError` (`store_unwritable`).
    """
    try:
        _make_private(path)
    except FileNotFoundError:
        _create(path)
    except OSError as error:
        raise _unusable(path.parent, error) from error


def _make_private(path: Path) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if stat.S_IMODE(status.st_mode) != 0o600:
        path.chmod(0o600)


def _create(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return  # another process has just created it
    except OSError as error:
        raise _unusable(path.parent, error) from error
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
