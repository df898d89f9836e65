"""Creates the database and updates an older one.

Imported only when needed: it loads sqlite_utils, which takes 0.2 s.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlite_utils import Database, Migrations

from engine.errors import StoreError
from engine.store.connection import SCHEMA_VERSION, connect, corrupt, schema_version, translated
from engine.store.home import create_file, database_path, unwritable
from engine.store.schema import STEPS
from engine.system.files import sync_folder
from engine.system.processes import is_alive

MIGRATION_SET: Final = "glasshouse"
_LOCK_FILE: Final = "glasshouse.lock"


def migrations() -> Migrations:
    """The steps as a sqlite-utils migration set; each raises `user_version` by one in its own transaction."""
    migration_set = Migrations(MIGRATION_SET)
    for number, (name, step) in enumerate(STEPS, start=1):
        migration_set(name=name)(_migration(number, step))
    return migration_set


def _migration(number: int, step: Callable[[sqlite3.Connection], None]) -> Callable[[Database], None]:
    def migrate(db: Database) -> None:
        step(db.conn)
        db.conn.execute(f"PRAGMA user_version = {number}")

    return migrate


@contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Serialize the migration between processes that start on one home at the same time."""
    path = home / _LOCK_FILE
    create_file(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def upgrade(home: Path) -> None:
    """Apply every pending step in one transaction, after copying a database that is not empty.

    Raises `StoreError`: `store_in_use` while a runner is running, `store_full`, `store_corrupt`,
    `store_unwritable`.
    """
    path = database_path(home)
    with _one_at_a_time(home), translated(path):
        connection = connect(path)
        try:
            version = schema_version(connection, path)
            if version == SCHEMA_VERSION:
                return
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                if version:
                    _refuse_while_running(connection)
                    _copy(path)
                migrations().apply(Database(connection))
                _refuse_contradictions(connection, path)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        finally:
            connection.close()


def _refuse_contradictions(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise corrupt(path, "contains records that contradict each other")


def _refuse_while_running(connection: sqlite3.Connection) -> None:
    for lock in connection.execute("SELECT name, pid, start_ticks, boot FROM locks WHERE name LIKE 'run:%'"):
        if is_alive(lock["pid"], lock["start_ticks"], lock["boot"]):
            run_id = lock["name"].removeprefix("run:")
            raise StoreError(
                f"The database needs an update, but an older Glasshouse (pid {lock['pid']}) is running {run_id}.",
                "Wait until the run ends, or cancel it with the version that started it.",
                code="store_in_use",
            )


def _copy(path: Path) -> None:
    """Copy the database as it is to `glasshouse.db.before-<n>`, where n is the new schema version."""
    final = path.with_name(f"{path.name}.before-{SCHEMA_VERSION}")
    partial = final.with_name(final.name + ".part")
    try:
        partial.unlink(missing_ok=True)
        create_file(partial)
        source, target = connect(path), sqlite3.connect(partial)
        try:
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")
        finally:
            target.close()
            source.close()
        partial.replace(final)
        sync_folder(final.parent)
    except sqlite3.Error:
        partial.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise unwritable(path.parent, "its database cannot be copied before the update") from error
