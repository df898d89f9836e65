"""The states of a run and its parts: which exist, and the record of each change."""

from __future__ import annotations

import sqlite3
from typing import Final, get_args

from engine.errors import StoreError, UsageError
from engine.store.failure import Reason, packed, reason_text
from engine.store.views import (
    FINAL_RUN_STATES,
    AttestationState,
    CleanupState,
    KeyState,
    RunState,
    RuntimeState,
    SegmentState,
)

_COLUMNS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "run": ("state", get_args(RunState)),
    "attestation": ("attestation", get_args(AttestationState)),
    "key": ("key_state", get_args(KeyState)),
    "runtime": ("runtime_state", get_args(RuntimeState)),
    "cleanup": ("cleanup", get_args(CleanupState)),
}


def key_of(db: sqlite3.Connection, run_id: str) -> int:
    """The run's key in the other tables; raises `UsageError` (`run_unknown`)."""
    row = db.execute("SELECT key FROM runs WHERE id = ?", (run_id,)).fetchone()
    if row is None:
        raise UsageError(f"There is no run {run_id}.", "List the runs with `glasshouse runs`.", code="run_unknown")
    return int(row["key"])


def note(db: sqlite3.Connection, run: int | None, subject: str, state: str, at: str, why: Reason) -> None:
    """Record a state in the run's history."""
    db.execute(
        "INSERT INTO transitions (run, subject, state, at, reason, error) VALUES (?, ?, ?, ?, ?, ?)",
        (run, subject, state, at, reason_text(why), packed(why)),
    )


def move(
    db: sqlite3.Connection, run: int, run_id: str, subject: str, state: str, why: Reason, at: str, boot: str
) -> None:
    """Change a state and record it, inside the caller's transaction; raises `StoreError`. `boot`: now, a `BootTime`."""
    kind = subject.removeprefix("segment:")
    reason, error = reason_text(why), packed(why)
    if subject in _COLUMNS:
        column, known = _COLUMNS[subject]
        present = db.execute(f"SELECT {column} FROM runs WHERE key = ?", (run,)).fetchone()[0]  # noqa: S608
    elif subject.startswith("segment:"):
        row = db.execute("SELECT state FROM segments WHERE run = ? AND kind = ?", (run, kind)).fetchone()
        known, present = (get_args(SegmentState), row["state"]) if row is not None else ((), None)
    else:
        known, present = (), None
    if state not in known:
        raise StoreError(f"There is no state {state!r} of {subject!r}.", "Report this as a bug.", code="state_unknown")
    last = db.execute(
        "SELECT state, reason FROM transitions WHERE run = ? AND subject = ? ORDER BY id DESC LIMIT 1",
        (run, subject),
    ).fetchone()
    if last is not None and tuple(last) == (state, reason):
        return
    if subject == "run" and present in FINAL_RUN_STATES and state != present:
        raise StoreError(f"Run {run_id} has already ended: {present}.", "Start a new run.", code="run_final")
    if subject == "run":
        db.execute(
            """UPDATE runs SET state = :state, reason = :reason, error = :error,
                started_boot = iif(started_at IS NULL AND :state <> 'queued', :boot, started_boot),
                started_at = iif(started_at IS NULL AND :state <> 'queued', :at, started_at),
                finished_boot = iif(:final, ifnull(finished_boot, :boot), NULL),
                finished_at = iif(:final, ifnull(finished_at, :at), NULL) WHERE key = :run""",
            {
                "state": state,
                "reason": reason,
                "error": error,
                "at": at,
                "boot": boot,
                "final": state in FINAL_RUN_STATES,
                "run": run,
            },
        )
    elif subject in _COLUMNS:
        db.execute(f"UPDATE runs SET {_COLUMNS[subject][0]} = ? WHERE key = ?", (state, run))  # noqa: S608
    else:
        db.execute(
            "UPDATE segments SET state = ?, reason = ?, error = ? WHERE run = ? AND kind = ?",
            (state, reason, error, run, kind),
        )
    note(db, run, subject, state, at, why)
