"""Lists of runs: keyset paging, text filter and sorting as SQL over the `runs` indexes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

from engine.errors import UsageError
from engine.store.locks import is_alive
from engine.store.views import FINAL_RUN_STATES, RunState, RunSummary, Source

Sort = Literal["created_at", "label", "overhead_pct", "model"]
_FEW_RUNS: Final = 5_000

COLUMNS: Final = """runs.*, locks.pid, locks.start_ticks, locks.boot,
    (SELECT steps FROM segments WHERE run = runs.key AND kind = 'raw') AS raw_steps,
    (SELECT steps FROM segments WHERE run = runs.key AND kind = 'protected') AS protected_steps"""
JOIN: Final = "LEFT JOIN locks ON locks.name = 'run:' || runs.id"


class Filter(NamedTuple):
    """Which runs: their source, words that must all occur (in label, id, model, GPU or provider), states."""

    sources: Sequence[Source]
    text: str = ""
    states: Sequence[str] | None = None


class _Order(NamedTuple):
    expression: str
    indexed_by: str
    falling: bool


def _order(sort: Sort, descending: bool | None) -> _Order:
    if sort not in get_args(Sort):
        raise UsageError(f"Runs cannot be sorted by {sort}.", f"Choose one of: {', '.join(get_args(Sort))}.")
    falling = (sort == "created_at") if descending is None else descending
    if sort == "overhead_pct":  # unknown overheads come last either way
        return (
            _Order("ifnull(overhead_pct, -1e300)", "runs_by_overhead_falling", True)
            if falling
            else _Order("ifnull(overhead_pct, 1e300)", "runs_by_overhead", False)
        )
    return _Order(
        sort,
        {"created_at": "runs_by_created", "label": "runs_by_label", "model": "runs_by_model"}[sort],
        falling,
    )


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
    """One page: the runs listed behind run `before`, or directly above run `above`, in listing order."""
    order = _order(sort, descending)
    conditions, values = _conditions(which)
    cursor = before or above
    falling = order.falling
    if cursor is not None:
        row = connection.execute(
            f"SELECT {order.expression}, id FROM runs WHERE id = ?",  # noqa: S608  the expression is ours
            (cursor,),
        ).fetchone()
        if row is None:
            raise UsageError(
                f"There is no run {cursor}.", "List the runs with `glasshouse runs`.", code="run_unknown"
            )
        falling = order.falling if above is None else not order.falling
        conditions.append(f"({order.expression}, runs.id) {'<' if falling else '>'} (?, ?)")
        values += tuple(row)
    direction = "DESC" if falling else "ASC"
    hint = f"INDEXED BY {order.indexed_by}" if _many(connection, which) else ""
    rows = connection.execute(
        f"""SELECT {COLUMNS} FROM runs {hint} {JOIN} WHERE {" AND ".join(conditions)}
        ORDER BY {order.expression} {direction}, runs.id {direction} LIMIT ? OFFSET ?""",  # noqa: S608
        (*values, -1 if limit is None else limit, offset),
    ).fetchall()
    summaries = [summary(row) for row in rows]
    return summaries[::-1] if above is not None else summaries


def count(connection: sqlite3.Connection, which: Filter) -> int:
    """How many runs pass the filter; without words this reads only the tallies."""
    if which.text.strip():
        conditions, values = _conditions(which)
        found = connection.execute(f"SELECT count(*) FROM runs WHERE {' AND '.join(conditions)}", values)  # noqa: S608
        return int(found.fetchone()[0])
    return _tally(connection, which)


def _many(connection: sqlite3.Connection, which: Filter) -> bool:
    """Whether walking the sorted index beats collecting the few candidates and sorting them."""
    return _tally(connection, which) > _FEW_RUNS


def _tally(connection: sqlite3.Connection, which: Filter) -> int:
    return sum(
        row["runs"]
        for row in connection.execute("SELECT source, state, runs FROM tallies")
        if row["source"] in which.sources and (which.states is None or row["state"] in which.states)
    )


def _conditions(which: Filter) -> tuple[list[str], tuple[Any, ...]]:
    conditions = [f"source IN ({_marks(which.sources)})"]
    values: list[Any] = [*which.sources]
    if which.states is not None:
        conditions.append(f"state IN ({_marks(which.states)})")
        values += which.states
    for word in which.text.casefold().split():
        conditions.append("instr(search, ?) > 0")
        values.append(word)
    return conditions, tuple(values)


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


def unfinished(connection: sqlite3.Connection) -> list[RunSummary]:
    """Every run that has not ended, newest first."""
    going = [state for state in get_args(RunState) if state not in FINAL_RUN_STATES]
    rows = connection.execute(
        f"""SELECT {COLUMNS} FROM runs INDEXED BY runs_by_state {JOIN} WHERE state IN ({_marks(going)})
        ORDER BY created_at DESC, runs.id DESC""",  # noqa: S608
        going,
    ).fetchall()
    return [summary(row) for row in rows]


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
    )


def _orphaned(row: sqlite3.Row) -> bool:
    if row["state"] in FINAL_RUN_STATES:
        return False
    return row["pid"] is None or not is_alive(row["pid"], row["start_ticks"], row["boot"])
