"""When a run's log on the allocation was last read to its end, by the operator's boot clock: it survives the runner."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple


class Reading(NamedTuple):
    """Microseconds of the boot clock: `base` of the first reading under this `clock`, `began` of the last one that
    reached the log's end. `clock` is a digest of the boot that both belong to.
    """

    clock: str
    base: int
    began: int


def last(connection: sqlite3.Connection, run: int) -> Reading | None:
    """The last reading of a run, None before the first."""
    row = connection.execute("SELECT clock, base, began FROM readings WHERE run = ?", (run,)).fetchone()
    return None if row is None else Reading(*row)


def keep(connection: sqlite3.Connection, run: int, reading: Reading) -> None:
    """Store a run's last reading, inside the caller's transaction."""
    connection.execute("INSERT OR REPLACE INTO readings (run, clock, base, began) VALUES (?, ?, ?, ?)", (run, *reading))
