"""Creating the database and updating an older one: atomically, after a copy, never while a runner is running."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_utils import Database

from engine.errors import StoreError
from engine.store.connection import SCHEMA_VERSION, connect
from engine.store.home import create_file, database_path, prepare_home
from engine.store.migrations import migrations
from engine.store.reader import Reader
from engine.store.schema import STEPS
from engine.store.writer import Writer
from engine.system.clock import boot_id
from engine.system.processes import start_ticks

OLD = 2
"""A version whose allocations did not say yet which runs they served."""

Child = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def older(home: Path) -> Path:
    """A database of an earlier version, with a run and its allocation."""
    prepare_home(home)
    path = database_path(home)
    create_file(path)
    connection = connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    migrations().apply(Database(connection), stop_before=STEPS[OLD][0])
    connection.execute(
        """INSERT INTO runs (id, source, label, provider, model, segments, state, created_at, attestation, key_state,
            runtime_state, cleanup, search)
        VALUES ('old1', 'mine', 'old', 'local', 'tiny', 'raw', 'finished', '2026-01-01T00:00:00.000Z',
            'not_requested', 'withheld', 'pending', 'gone', 'old')"""
    )
    connection.execute(
        """INSERT INTO allocations (id, provider, name, state, created_at, run)
        VALUES ('a1', 'local', 'glasshouse-1', 'ready', '2026-01-01T00:00:00.000Z',
            (SELECT key FROM runs WHERE id = 'old1'))"""
    )
    connection.close()
    return path


def version(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        result = int(connection.execute("PRAGMA user_version").fetchone()[0])
    connection.close()
    return result


def test_schema_version_counts_the_steps(home: Path) -> None:
    Writer(home).close()
    assert version(database_path(home)) == SCHEMA_VERSION == len(STEPS)


def test_steps_are_recorded_by_name(home: Path) -> None:
    Writer(home).close()
    with sqlite3.connect(database_path(home)) as connection:
        names = connection.execute("SELECT name FROM _sqlite_migrations ORDER BY id").fetchall()
    assert [name for (name,) in names] == [name for name, _ in STEPS]


@pytest.mark.parametrize("opened_by", [Writer, Reader])
def test_older_database_is_updated_after_a_copy(
    home: Path, older: Path, opened_by: Callable[[Path], Writer | Reader]
) -> None:
    opened_by(home)
    with Reader(home) as reader:
        assert [run.id for run in reader.runs()] == ["old1"]
        assert reader.count(("published",)) == 17
        assert reader.runs_served("a1") == ["old1"]
        (entry,) = reader.allocations()
        assert (entry.age_sec, entry.spent) == (None, None)  # its times in UTC alone decide nothing
    copy = older.with_name(f"glasshouse.db.before-{SCHEMA_VERSION}")
    assert version(older) == SCHEMA_VERSION
    assert version(copy) == OLD
    assert copy.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(copy) as connection:
        result = connection.execute("SELECT id, source FROM runs WHERE source = 'mine'").fetchall()
    assert result == [("old1", "mine")]


def test_first_creation_leaves_no_copy(home: Path) -> None:
    Writer(home).close()
    assert not list(home.glob("*before*"))


def test_no_update_while_a_runner_is_running(home: Path, older: Path) -> None:
    with sqlite3.connect(older) as connection:
        connection.execute(
            "INSERT INTO locks VALUES ('run:old1', ?, ?, ?, '2026-01-01T00:00:00.000Z')",
            (os.getpid(), start_ticks(os.getpid()), boot_id()),
        )
    connection.close()
    with pytest.raises(StoreError) as caught:
        Writer(home)
    assert caught.value.code == "store_in_use"
    assert "old1" in caught.value.message
    assert version(older) == OLD
    assert not list(home.glob("*before*"))


def test_the_update_proceeds_when_the_runner_is_dead(home: Path, older: Path) -> None:
    with sqlite3.connect(older) as connection:
        connection.execute(
            "INSERT INTO locks VALUES ('run:old1', ?, ?, ?, '2026-01-01T00:00:00.000Z')",
            (os.getpid(), 1, boot_id()),
        )
    connection.close()
    Writer(home).close()
    assert version(older) == SCHEMA_VERSION


def test_failed_update_changes_nothing(home: Path, older: Path) -> None:
    with sqlite3.connect(older) as connection:
        connection.execute("UPDATE allocations SET run = 999")
    connection.close()
    with pytest.raises(StoreError) as caught:
        Writer(home)
    assert caught.value.code == "store_corrupt"
    assert version(older) == OLD
    with sqlite3.connect(older) as connection:
        assert connection.execute("SELECT run FROM allocations").fetchall() == [(999,)]


def test_a_failed_copy_stops_the_update(home: Path, older: Path) -> None:
    older.with_name(f"glasshouse.db.before-{SCHEMA_VERSION}").mkdir()
    with pytest.raises(StoreError) as caught:
        Writer(home)
    assert caught.value.code == "store_unwritable"
    assert version(older) == OLD


def test_processes_that_start_together_create_one_database(home: Path, child: Child) -> None:
    code = "import sys; from pathlib import Path; from engine.store.writer import Writer; Writer(Path(sys.argv[1]))"
    for process in [child(code, home) for _ in range(4)]:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    with Reader(home) as reader:
        assert reader.count(("published",)) == 17
