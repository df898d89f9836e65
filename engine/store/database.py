"""Opening the home folder and its database: paths, permissions, pragmas.

Everything that sqlite3 raises leaves here as a `StoreError` with a code of its own.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from engine.errors import StoreError

DATABASE: Final = "glasshouse.db"
APPLICATION_ID: Final = 0x47_4C_41_53
SCHEMA_VERSION: Final = 3
BUSY_SECONDS: Final = 5.0
_FOLDERS: Final = ("keys", "runs", "adapters", "logs")

_PRIMARY: Final = 0xFF  # sqlite's extended result codes keep the primary one in the low byte


def database_path(home: Path) -> Path:
    """Where the database of this home lies."""
    return home / DATABASE


def corrupt(path: Path, what: str = "is damaged") -> StoreError:
    """`store_corrupt`: names the file and leaves it where it is."""
    return StoreError(
        f"The database {path} {what}.",
        f"Nothing was changed. Move it aside (mv '{path}' '{path}.damaged') and the next start makes a new "
        "one; keys and adapters are kept apart from it. Or put a copy that you have in its place.",
        code="store_corrupt",
    )


def unwritable(path: Path, why: str) -> StoreError:
    """`store_unwritable`: the folder or file cannot be made or written."""
    return StoreError(
        f"The home folder {path} cannot be used: {why}.",
        "Make it writable, or choose another with --home DIR or GLASSHOUSE_HOME.",
        code="store_unwritable",
    )


def full(path: Path) -> StoreError:
    """`store_full`: the disk has no room; the transaction was rolled back."""
    return StoreError(
        f"The disk that holds {path} is full; nothing was half-written.",
        "Free some space there, or choose another home with --home DIR.",
        code="store_full",
    )


def _cannot_open(path: Path) -> StoreError:
    return unwritable(path.parent, "its database cannot be opened or written")


def _busy(path: Path) -> StoreError:
    return StoreError(
        f"The database {path} stayed locked by another process for {BUSY_SECONDS:g} s.",
        "Try again; if it stays so, look for a stopped process that has it open.",
        code="store_busy",
    )


def _conflict(_path: Path) -> StoreError:
    return StoreError(
        "The store refused a record that contradicts another one.",
        "Report this with the log file.",
        code="store_conflict",
    )


def _interrupted(_path: Path) -> StoreError:
    return StoreError("The read was interrupted.", "Ask again.", code="store_interrupted")


def _disk_failed(path: Path) -> StoreError:
    return StoreError(
        f"The disk under {path} failed while it was read or written.",
        "Check the disk and the space on it, then try again.",
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
    """The `StoreError` for what sqlite3 raised about the database at `path`."""
    meaning = _MEANINGS.get(getattr(error, "sqlite_errorcode", 0) & _PRIMARY)
    if meaning is not None:
        return meaning(path)
    return StoreError(f"The database {path} cannot be used: {error}.", "Report this with the log file.")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns the block's sqlite3 errors, and a stored series that does not inflate, into a `StoreError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error, path) from error
    except zlib.error as error:
        raise corrupt(path) from error


def connect(path: Path) -> sqlite3.Connection:
    """An autocommit connection to a database file that exists; usable from any thread, one at a time."""
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
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if owner != APPLICATION_ID and (found or tables):
        raise corrupt(path, "was not made by Glasshouse")
    if found > SCHEMA_VERSION:
        raise StoreError(
            f"The database {path} was made by a newer Glasshouse: schema {found}, here {SCHEMA_VERSION}.",
            "Update glasshouse, or choose another home with --home DIR.",
            code="store_newer",
        )
    return found


def has_database(home: Path) -> bool:
    """Whether there is a database in this home; raises `StoreError` (`store_unwritable`) where none may look."""
    try:
        database_path(home).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unusable(home, error) from error
    return True


def prepare_home(home: Path) -> None:
    """Make the home folder, 0700; one of ours that is open to others is closed to them.

    A folder that holds other things keeps its mode. Raises `StoreError` (`store_unwritable`).
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
    """Make an empty file unless it is there, and 0600 whatever the umask.

    One that is there is never opened: closing it would take this process's sqlite3 locks on it away, and with them the
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
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if stat.S_IMODE(found.st_mode) != 0o600:
        path.chmod(0o600)


def _create(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return  # another process was first
    except OSError as error:
        raise _unusable(path.parent, error) from error
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def open_for_writing(home: Path) -> sqlite3.Connection:
    """The database of this home, made or brought up to date first; raises `StoreError`."""
    path = database_path(home)
    prepare_home(home)
    create_file(path)
    return _open_current(
        home,
        path,
        "PRAGMA journal_mode = WAL",
        "PRAGMA foreign_keys = ON",
        "PRAGMA synchronous = NORMAL",
        "PRAGMA journal_size_limit = 4194304",
    )


def open_for_reading(home: Path) -> sqlite3.Connection | None:
    """A connection that cannot write, or None while this home has no database; raises `StoreError`."""
    path = database_path(home)
    if not has_database(home):
        return None
    return _open_current(home, path, "PRAGMA query_only = ON")


def _open_current(home: Path, path: Path, *pragmas: str) -> sqlite3.Connection:
    with translated(path):
        connection = connect(path)
        try:
            if schema_version(connection, path) < SCHEMA_VERSION:
                from engine.store.schema import upgrade  # noqa: PLC0415  sqlite_utils takes 0.2 s to import

                connection.close()
                upgrade(home)
                connection = connect(path)
            for pragma in pragmas:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        return connection
