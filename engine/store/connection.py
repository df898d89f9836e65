"""Connects to the database file, checks its owner and schema version, and translates sqlite3 errors.

Every sqlite3 error is raised as a `StoreError` with its own code.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from engine.errors import StoreError
from engine.store.home import full, unwritable

APPLICATION_ID: Final = 0x47_4C_41_53
SCHEMA_VERSION: Final = 6
BUSY_SECONDS: Final = 5.0

_PRIMARY: Final = 0xFF  # sqlite's extended result codes keep the primary one in the low byte


def corrupt(path: Path, what: str = "is damaged") -> StoreError:
    """`store_corrupt`: names the file, which is left unchanged."""
    return StoreError(
        f"The database {path} {what}.",
        f"Nothing was changed. Move it aside (mv '{path}' '{path}.damaged'): the next start creates a new one, and "
        "keys and adapters, which are stored separately, stay. Or replace it with a backup.",
        code="store_corrupt",
    )


def _cannot_open(path: Path) -> StoreError:
    return unwritable(path.parent, "its database cannot be opened or written")


def _busy(path: Path) -> StoreError:
    return StoreError(
        f"The database {path} stayed locked by another process for {BUSY_SECONDS:g} s.",
        "Try again. If it stays locked, look for a suspended glasshouse process and end it.",
        code="store_busy",
    )


def _conflict(_path: Path) -> StoreError:
    return StoreError(
        "The database refused a record that contradicts another one.",
        "Report this as a bug, with the log file.",
        code="store_conflict",
    )


def _interrupted(_path: Path) -> StoreError:
    return StoreError("The read was interrupted.", "Try again.", code="store_interrupted")


def _disk_failed(path: Path) -> StoreError:
    return StoreError(
        f"The disk reported an error while {path} was read or written.",
        "Check the disk and its free space, then try again.",
        code="store_io",
    )


_MEANINGS: Final[dict[int, Callable[[Path], StoreError]]] = {
    sqlite3.SQLITE_CORRUPT: corrupt,
    sqlite3.SQLITE_NOTADB: corrupt,
    sqlite3.SQLITE_FULL: full,
    sqlite3.SQLITE_READONLY: _cannot_open,
    sqlite3.SQLITE_CANTOPEN: _cannot_open,
    sqlite3.SQLITE_PERM: _cannot_open,
    sqlite3.SQLITE_BUSY: _busy,
    sqlite3.SQLITE_LOCKED: _busy,
    sqlite3.SQLITE_CONSTRAINT: _conflict,
    sqlite3.SQLITE_INTERRUPT: _interrupted,
    sqlite3.SQLITE_IOERR: _disk_failed,
}


def store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """The `StoreError` for an sqlite3 error about the database at `path`."""
    meaning = _MEANINGS.get(getattr(error, "sqlite_errorcode", 0) & _PRIMARY)
    if meaning is not None:
        return meaning(path)
    return StoreError(f"The database {path} cannot be used: {error}.", "Report this as a bug, with the log file.")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise the block's sqlite3 errors, and zlib's errors about damaged series, as a `StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error, path) from error
    except zlib.error as error:
        raise corrupt(path) from error


def connect(path: Path) -> sqlite3.Connection:
    """An autocommit connection to an existing database file; usable from any thread, but by one at a time."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    return connection


def schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """The schema's version, 0 for an empty file; raises `StoreError` (`store_newer`, `store_corrupt`)."""
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if owner != APPLICATION_ID and (version or tables):
        raise corrupt(path, "was not created by Glasshouse")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"The database {path} was written by a newer Glasshouse (schema {version}, here {SCHEMA_VERSION}).",
            "Update glasshouse, or choose another home with --home DIR.",
            code="store_newer",
        )
    return version
