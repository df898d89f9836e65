"""The schema's steps as plain SQL, oldest first. A step that has been released is never edited."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from engine.store.connection import APPLICATION_ID
from engine.store.published import insert_published

_TABLES: Final = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    """CREATE TABLE runs (
        key INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        source TEXT NOT NULL CHECK (source IN ('mine', 'published')),
        label TEXT NOT NULL COLLATE NOCASE,
        preset TEXT,
        provider TEXT NOT NULL,
        gpu_model TEXT,
        model TEXT NOT NULL COLLATE NOCASE,
        segments TEXT NOT NULL CHECK (segments IN ('pair', 'protected', 'raw')),
        run_order TEXT,
        state TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        created_at TEXT NOT NULL,
        started_at TEXT,
        finished_at TEXT,
        target_sec REAL,
        step_budget INTEGER,
        overhead_pct REAL,
        overhead_rising REAL AS (ifnull(overhead_pct, 1e300)),
        overhead_falling REAL AS (ifnull(overhead_pct, -1e300)),
        attestation TEXT NOT NULL,
        key_state TEXT NOT NULL,
        runtime_state TEXT NOT NULL,
        cleanup TEXT NOT NULL,
        clean INTEGER,
        tier TEXT,
        ear_status TEXT,
        reason_codes TEXT NOT NULL DEFAULT '[]',
        search TEXT NOT NULL)""",
    # Each sorted index contains the filters' columns, so that a scan reads no row that is not shown.
    "CREATE INDEX runs_by_created ON runs (created_at, id, source, state)",
    "CREATE INDEX runs_searched ON runs (created_at, id, source, state, search)",
    "CREATE INDEX runs_by_label ON runs (label, id, source, state)",
    "CREATE INDEX runs_by_model ON runs (model, id, source, state)",
    "CREATE INDEX runs_by_overhead_rising ON runs (overhead_rising, id, source, state)",
    "CREATE INDEX runs_by_overhead_falling ON runs (overhead_falling, id, source, state)",
    "CREATE INDEX runs_by_state ON runs (source, state)",
    # The number of runs per source and state, kept up to date by triggers: counting a million rows takes 30 ms.
    """CREATE TABLE tallies (
        source TEXT NOT NULL,
        state TEXT NOT NULL,
        runs INTEGER NOT NULL,
        PRIMARY KEY (source, state)) WITHOUT ROWID""",
    """CREATE TRIGGER runs_counted AFTER INSERT ON runs BEGIN
        INSERT INTO tallies VALUES (new.source, new.state, 1)
        ON CONFLICT (source, state) DO UPDATE SET runs = runs + 1;
    END""",
    """CREATE TRIGGER runs_recounted AFTER UPDATE OF state ON runs WHEN new.state <> old.state BEGIN
        UPDATE tallies SET runs = runs - 1 WHERE source = old.source AND state = old.state;
        INSERT INTO tallies VALUES (new.source, new.state, 1)
        ON CONFLICT (source, state) DO UPDATE SET runs = runs + 1;
    END""",
    """CREATE TABLE plans (
        run INTEGER PRIMARY KEY REFERENCES runs,
        digest TEXT NOT NULL,
        body TEXT NOT NULL)""",
    """CREATE TABLE results (
        run INTEGER PRIMARY KEY REFERENCES runs,
        at TEXT NOT NULL,
        body TEXT NOT NULL,
        checks TEXT NOT NULL)""",
    """CREATE TABLE segments (
        key INTEGER PRIMARY KEY,
        run INTEGER NOT NULL REFERENCES runs,
        kind TEXT NOT NULL CHECK (kind IN ('raw', 'protected')),
        position INTEGER NOT NULL,
        state TEXT NOT NULL DEFAULT 'pending',
        reason TEXT NOT NULL DEFAULT '',
        stop_reason TEXT,
        steps INTEGER NOT NULL DEFAULT 0,
        elapsed_ns INTEGER NOT NULL DEFAULT 0,
        last_loss REAL,
        final_loss REAL,
        adapter_sha256 TEXT,
        tensor_digest TEXT,
        phases TEXT NOT NULL DEFAULT '{}',
        UNIQUE (run, kind))""",
    """CREATE TABLE transitions (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL REFERENCES runs,
        subject TEXT NOT NULL,
        state TEXT NOT NULL,
        at TEXT NOT NULL,
        reason TEXT NOT NULL)""",
    "CREATE INDEX transitions_by_run ON transitions (run)",
    """CREATE TABLE tails (
        run INTEGER NOT NULL REFERENCES runs,
        chain TEXT NOT NULL CHECK (chain IN ('runner', 'pod')),
        next_seq INTEGER NOT NULL,
        head TEXT NOT NULL,
        byte_offset INTEGER NOT NULL,
        PRIMARY KEY (run, chain)) WITHOUT ROWID""",
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL REFERENCES runs,
        chain TEXT NOT NULL CHECK (chain IN ('runner', 'pod')),
        seq INTEGER NOT NULL,
        ts TEXT NOT NULL,
        event TEXT NOT NULL,
        body TEXT NOT NULL,
        hash BLOB NOT NULL)""",
    "CREATE INDEX events_by_run ON events (run)",
    "CREATE UNIQUE INDEX events_by_seq ON events (run, chain, seq)",
    # One row per train.progress event, from which and the series the event's bytes are restored. `ts` is
    # milliseconds since 1970 if the text can be restored from that, else the text.
    """CREATE TABLE progress (
        run INTEGER NOT NULL REFERENCES runs,
        seq INTEGER NOT NULL,
        ts NOT NULL,
        protected INTEGER NOT NULL,
        first INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (run, seq)) WITHOUT ROWID""",
    """CREATE TABLE series (
        segment INTEGER NOT NULL REFERENCES segments,
        chunk INTEGER NOT NULL,
        count INTEGER NOT NULL,
        packed INTEGER NOT NULL,
        losses BLOB NOT NULL,
        nanos BLOB NOT NULL,
        PRIMARY KEY (segment, chunk))""",
    """CREATE TABLE evidence (
        run INTEGER NOT NULL REFERENCES runs, kind TEXT NOT NULL, at TEXT NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (run, kind))""",
    """CREATE TABLE receipts (
        run INTEGER NOT NULL REFERENCES runs, kind TEXT NOT NULL, at TEXT NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (run, kind))""",
    """CREATE TABLE allocations (
        id TEXT PRIMARY KEY,
        provider TEXT NOT NULL,
        name TEXT NOT NULL UNIQUE,
        provider_id TEXT,
        gpu_model TEXT,
        state TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '',
        created_at TEXT NOT NULL,
        released_at TEXT,
        price_per_hour REAL,
        spent REAL,
        run INTEGER REFERENCES runs,
        detail TEXT NOT NULL DEFAULT '{}')""",
    "CREATE INDEX allocations_open ON allocations (created_at) WHERE released_at IS NULL",
    "CREATE INDEX allocations_by_run ON allocations (run)",
    """CREATE TABLE allocation_moves (
        id INTEGER PRIMARY KEY,
        allocation TEXT NOT NULL REFERENCES allocations,
        state TEXT NOT NULL,
        at TEXT NOT NULL,
        reason TEXT NOT NULL)""",
    "CREATE INDEX allocation_moves_by_allocation ON allocation_moves (allocation)",
    # `name` is run:<id> for a runner and allocation:<name> for a machine that one run at a time may use.
    """CREATE TABLE locks (
        name TEXT PRIMARY KEY,
        pid INTEGER NOT NULL,
        start_ticks INTEGER NOT NULL,
        boot TEXT NOT NULL,
        at TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE requests (
        id INTEGER PRIMARY KEY,
        run INTEGER REFERENCES runs,
        kind TEXT NOT NULL,
        at TEXT NOT NULL,
        detail TEXT NOT NULL DEFAULT '{}',
        done_at TEXT,
        outcome TEXT)""",
    "CREATE INDEX requests_open ON requests (run, kind) WHERE done_at IS NULL",
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)


def _create_tables(connection: sqlite3.Connection) -> None:
    for statement in _TABLES:
        connection.execute(statement)


def _add_allocation_ends(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE allocations ADD COLUMN keep_until TEXT")
    connection.execute("ALTER TABLE allocations ADD COLUMN deadline TEXT")
    # A kept allocation is used by one run after another.
    connection.execute(
        """CREATE TABLE allocation_runs (
            allocation TEXT NOT NULL REFERENCES allocations,
            run INTEGER NOT NULL REFERENCES runs,
            at TEXT NOT NULL,
            PRIMARY KEY (allocation, run)) WITHOUT ROWID"""
    )
    connection.execute("INSERT INTO allocation_runs SELECT id, run, created_at FROM allocations WHERE run IS NOT NULL")
    connection.execute("CREATE INDEX allocation_runs_by_run ON allocation_runs (run)")


def _add_readings(connection: sqlite3.Connection) -> None:
    connection.execute(
        """CREATE TABLE readings (
            run INTEGER PRIMARY KEY REFERENCES runs,
            clock TEXT NOT NULL,
            base INTEGER NOT NULL,
            began INTEGER NOT NULL)"""
    )
    connection.execute("ALTER TABLE runs ADD COLUMN timing_slack_pct REAL")


def _add_boot_times(connection: sqlite3.Connection) -> None:
    """Moments of the boot clock beside those in UTC, as `BootTime` writes them: durations and costs follow."""
    for table, column in (
        ("runs", "started_boot"),
        ("runs", "finished_boot"),
        ("allocations", "created_boot"),
        ("allocations", "released_boot"),
        ("allocation_runs", "boot"),
    ):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} TEXT")


def _add_errors(connection: sqlite3.Connection) -> None:
    """Code, sentence, hint and causes of a failure, as JSON; null for every other reason."""
    for table in ("runs", "segments", "transitions", "allocations", "allocation_moves"):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN error TEXT")


STEPS: Final[tuple[tuple[str, Callable[[sqlite3.Connection], None]], ...]] = (
    ("0001_tables", _create_tables),
    ("0002_published_rows", insert_published),
    ("0003_allocation_ends", _add_allocation_ends),
    ("0004_readings", _add_readings),
    ("0005_boot_times", _add_boot_times),
    ("0006_errors", _add_errors),
)
