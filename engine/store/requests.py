"""Requests of console and command line to a runner, in their order."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from engine.errors import StoreError
from engine.store import states
from engine.store.views import FINAL_RUN_STATES, Request, RequestKind
from engine.wire import canonical, parse


def make(
    connection: sqlite3.Connection, run_id: str | None, kind: RequestKind, detail: Mapping[str, Any], at: str
) -> int:
    """Add a request, inside the caller's transaction; returns the id of an equal open one if there is one.

    Raises `StoreError` (`run_final`) for cancelling a run that has ended.
    """
    body = canonical(dict(detail)).decode()
    run = None if run_id is None else states.key_of(connection, run_id)
    if kind == "cancel" and run is not None:
        state = connection.execute("SELECT state FROM runs WHERE key = ?", (run,)).fetchone()["state"]
        if state in FINAL_RUN_STATES:
            raise StoreError(f"Run {run_id} has already ended: {state}.", "It needs no cancelling.", code="run_final")
    same = connection.execute(
        "SELECT id FROM requests WHERE run IS ? AND kind = ? AND detail = ? AND done_at IS NULL",
        (run, kind, body),
    ).fetchone()
    if same is not None:
        return int(same["id"])
    inserted = connection.execute(
        "INSERT INTO requests (run, kind, at, detail) VALUES (?, ?, ?, ?)", (run, kind, at, body)
    )
    return int(inserted.lastrowid or 0)


def pending(connection: sqlite3.Connection, run_id: str | None) -> list[Request]:
    """Open requests to a run's runner (None: those without a run), oldest first."""
    run = None if run_id is None else states.key_of(connection, run_id)
    rows = connection.execute(
        "SELECT id, kind, at, detail FROM requests WHERE run IS ? AND done_at IS NULL ORDER BY id", (run,)
    )
    return [
        Request(id=row["id"], run_id=run_id, kind=row["kind"], at=row["at"], detail=parse(row["detail"]))
        for row in rows
    ]


def complete(connection: sqlite3.Connection, request_id: int, outcome: str, at: str) -> None:
    """Mark a request as done; the first outcome is kept."""
    connection.execute(
        "UPDATE requests SET done_at = ?, outcome = ? WHERE id = ? AND done_at IS NULL", (at, outcome, request_id)
    )
