"""Lists of runs: keyset paging, text filter and sorting as SQL over the `runs` indexes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

from engine.errors import UsageError
from engine.store.failure import Failure, failure_of, read_failure
from engine.store.views import FINAL_RUN_STATES, RunState, RunSummary, Source
from engine.system.clock import BootTime
from engine.system.processes import is_alive

Sort = Literal["created_at", "label", "overhead_pct", "model"]
FEW_RUNS: Final = 5_000

COLUMNS: Final = """runs.*, locks.pid, locks.start_ticks, locks.boot,
    (SELECT steps FROM segments WHERE run = runs.key AND kind = 'raw') AS raw_steps,
    (SELECT steps FROM segments WHERE run = runs.key AND kind = 'protected') AS protected_steps"""
JOIN: Final = "LEFT JOIN locks ON locks.name = 'run:' || runs.id"


class Filter(NamedTuple):
    """Which runs to list: by source, words that must all occur (in label, id, model, GPU or provider), states."""

    sources: Sequence[Source]
    text: str = ""
    states: Sequence[str] | None = None


class _Order(NamedTuple):
    column: str
    indexed_by: str
    is_descending: bool


def _order(sort: Sort, descending: bool | None, text: str) -> _Order:
    if sort not in get_args(Sort):
        raise UsageError(f"Runs cannot be sorted by {sort}.", f"Choose one of: {', '.join(get_args(Sort))}.")
    is_descending = (sort == "created_at") if descending is None else descending
    if sort == "overhead_pct":  # unknown overheads come last either way
        column = "overhead_falling" if is_descending else "overhead_rising"
        return _Order(column, f"runs_by_{column}", is_descending)
    if sort == "created_at" and text.strip():
        return _Order(sort, "runs_searched", is_descending)
    return _Order(sort, f"runs_by_{sort.removesuffix('_at')}", is_descending)


def page(
    connection: sqlite3.Connection,
    which: Filter,
    *,
    limit: int | None,
    before: str | None,
    above: str | None,
    offset: int,
    sort: Sort,
    descending: bool | None,
) -> list[RunSummary]:
    """One page: the runs listed after run `before`, or directly above run `above`, in listing order."""
    column, indexed_by, is_descending = _order(sort, descending, which.text)
    conditions, values = _conditions(which)
    if above is not None:
        is_descending = not is_descending
    cursor = before if above is None else above
    if cursor is not None:
        conditions.append(f"({column}, id) {'<' if is_descending else '>'} (?, ?)")
        values += _place(connection, column, cursor)
    if _tally(connection, which) < FEW_RUNS:  # faster to collect and sort them than to scan the sorted index
        indexed_by = "runs_by_state"
    order = f"{column} {'DESC' if is_descending else 'ASC'}, id {'DESC' if is_descending else 'ASC'}"
    rows = connection.execute(
        f"""WITH page AS (
            SELECT key AS page_key FROM runs INDEXED BY {indexed_by} WHERE {" AND ".join(conditions)}
            ORDER BY {order} LIMIT ? OFFSET ?)
        SELECT {COLUMNS} FROM page JOIN runs ON runs.key = page_key {JOIN} ORDER BY {order}""",  # noqa: S608
        (*values, -1 if limit is None else limit, offset),
    ).fetchall()
    summaries = [summary(row) for row in rows]
    return summaries if above is None else summaries[::-1]


def _place(connection: sqlite3.Connection, column: str, run_id: str) -> tuple[Any, ...]:
    row = connection.execute(f"SELECT {column}, id FROM runs WHERE id = ?", (run_id,)).fetchone()  # noqa: S608
    if row is None:
        raise UsageError(f"There is no run {run_id}.", "List the runs with `glasshouse runs`.", code="run_unknown")
    return tuple(row)


def count(connection: sqlite3.Connection, which: Filter) -> int:
    """How many runs pass the filter; without words this reads only the table `tallies`."""
    if not which.text.strip():
        return _tally(connection, which)
    conditions, values = _conditions(which)
    rows = connection.execute(
        f"SELECT count(*) FROM runs INDEXED BY runs_searched WHERE {' AND '.join(conditions)}",  # noqa: S608
        values,
    )
    return int(rows.fetchone()[0])


def _tally(connection: sqlite3.Connection, which: Filter) -> int:
    return sum(
        row["runs"]
        for row in connection.execute("SELECT source, state, runs FROM tallies")
        if row["source"] in which.sources and (which.states is None or row["state"] in which.states)
    )


def _conditions(which: Filter) -> tuple[list[str], tuple[Any, ...]]:
    conditions = [f"source IN ({_marks(which.sources)})"]
    values: list[str] = [*which.sources]
    if which.states is not None:
        conditions.append(f"state IN ({_marks(which.states)})")
        values += which.states
    words = which.text.casefold().split()
    return [*conditions, *["instr(search, ?) > 0"] * len(words)], (*values, *words)


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


def unfinished(connection: sqlite3.Connection) -> list[RunSummary]:
    """Every run of mine that has not ended, newest first."""
    unfinished_states = [state for state in get_args(RunState) if state not in FINAL_RUN_STATES]
    return page(
        connection,
        Filter(("mine",), states=unfinished_states),
        limit=None,
        before=None,
        above=None,
        offset=0,
        sort="created_at",
        descending=None,
    )


def summary(row: sqlite3.Row) -> RunSummary:
    """The view of one row of `COLUMNS`."""
    return RunSummary(
        id=row["id"],
        source=row["source"],
        label=row["label"],
        preset=row["preset"],
        provider=row["provider"],
        gpu_model=row["gpu_model"],
        model=row["model"],
        segments=row["segments"],
        order=row["run_order"],
        state=row["state"],
        reason=row["reason"],
        error=_failure(row),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        target_sec=row["target_sec"],
        step_budget=row["step_budget"],
        raw_steps=row["raw_steps"],
        protected_steps=row["protected_steps"],
        overhead_pct=row["overhead_pct"],
        attestation=row["attestation"],
        key=row["key_state"],
        runtime_state=row["runtime_state"],
        cleanup=row["cleanup"],
        clean=None if row["clean"] is None else bool(row["clean"]),
        orphaned=_orphaned(row),
        timing_slack_pct=row["timing_slack_pct"],
        duration_sec=_duration(row),
    )


def _duration(row: sqlite3.Row) -> float | None:
    began = BootTime.read(row["started_boot"])
    ended = BootTime.read(row["finished_boot"]) if row["state"] in FINAL_RUN_STATES else BootTime.now()
    return None if began is None or ended is None else began.until(ended)


def _failure(row: sqlite3.Row) -> Failure | None:
    """Also of a run that failed under a version that stored no hint."""
    return read_failure(row) or (failure_of(row["reason"]) if row["state"] in ("failed", "cancelled") else None)


def _orphaned(row: sqlite3.Row) -> bool:
    if row["state"] in FINAL_RUN_STATES:
        return False
    return row["pid"] is None or not is_alive(row["pid"], row["start_ticks"], row["boot"])
