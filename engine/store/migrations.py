"""Making the database and bringing an older one up to date.

Imported only when that is due: it loads sqlite_utils, which takes 0.2 s.
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
    made = Migrations(MIGRATION_SET)
    for number, (name, step) in enumerate(STEPS, start=1):
        made(name=name)(_migration(number, step))
    return made


def _migration(number: int, step: Callable[[sqlite3.Connection], None]) -> Callable[[Database], None]:
    def migrate(db: Database) -> None:
        step(db.conn)
        db.conn.execute(f"PRAGMA user_version = {number}")

    return migrate


@contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Two processes that start at once on one home migrate one after the other."""
    path = home / _LOCK_FILE
    create_file(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def upgrade(home: Path) -> None:
    """Apply every step that is due, all or none, after copying a database that holds anything.

    Raises `StoreError`: `store_in_use` while a runner lives, `store_full`, `store_corrupt`,
    `store_unwritable`.
    """
    path = database_path(home)
    with _one_at_a_time(home), translated(path):
        connection = connect(path)
        try:
            found = schema_version(connection, path)
            if found == SCHEMA_VERSION:
                return
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                if found:
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
        raise corrupt(path, "holds records that contradict each other")


def _refuse_while_running(connection: sqlite3.Connection) -> None:
    for lock in connection.execute("SELECT name, pid, start_ticks, boot FROM locks WHERE name LIKE 'run:%'"):
        if is_alive(lock["pid"], lock["start_ticks"], lock["boot"]):
            run_id = lock["name"].removeprefix("run:")
            raise StoreError(
                f"The database needs an update, and an older Glasshouse (pid {lock['pid']}) runs {run_id}.",
                "Wait until it ends, or cancel it with the version that started it.",
                code="store_in_use",
            )


def _copy(path: Path) -> None:
    """Keep the database as it was in `glasshouse.db.before-<n>`, n being the version that follows."""
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
        raise unwritable(path.parent, "the copy before its update cannot be made") from error
