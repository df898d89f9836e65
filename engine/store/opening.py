"""Opens a home's database; creates or updates it first if needed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from engine.store.connection import SCHEMA_VERSION, connect, schema_version, translated
from engine.store.home import create_file, database_path, has_database, prepare_home


def open_for_writing(home: Path) -> sqlite3.Connection:
    """Open the database of this home; creates or updates it first if needed; raises `StoreError`."""
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
    """Open a read-only connection, or return None while this home has no database; raises `StoreError`."""
    path = database_path(home)
    if not has_database(home):
        return None
    return _open_current(home, path, "PRAGMA query_only = ON")


def _open_current(home: Path, path: Path, *pragmas: str) -> sqlite3.Connection:
    with translated(path):
        connection = connect(path)
        try:
            if schema_version(connection, path) < SCHEMA_VERSION:
                from engine.store.migrations import upgrade  # noqa: PLC0415  sqlite_utils takes 0.2 s to import

                connection.close()
                upgrade(home)
                connection = connect(path)
            for pragma in pragmas:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        return connection
