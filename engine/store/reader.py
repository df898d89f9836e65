"""Reads from the store: short autocommit queries with sqlite3 only, so that it starts fast."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from engine.errors import UsageError
from engine.events import Chain, TrainEvaluated
from engine.store import chains, ledger, listing, progress, requests, states
from engine.store.chains import Tail
from engine.store.connection import translated
from engine.store.failure import failure_of, read_failure
from engine.store.home import database_path, has_database
from engine.store.listing import Filter, Sort
from engine.store.opening import open_for_reading
from engine.store.views import (
    AllocationView,
    Check,
    LogLine,
    Request,
    RunSummary,
    RunView,
    SegmentView,
    Series,
    Source,
    Transition,
)
from engine.system.processes import is_alive
from engine.wire import TRAIN_EVALUATED, Event, parse

_AMBIGUOUS_SHOWN = 4


class Reader:
    """The only way to read the store; usable from any thread, one read at a time.

    Every method raises `StoreError` when the store fails. A home without a database reads as if it held
    only the published rows, and nothing is created there.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._path = database_path(home)
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._in_memory = False
        self._opened = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; the next read opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def interrupt(self) -> None:
        """Interrupt the read of another thread, which raises `StoreError` (`store_interrupted`)."""
        connection = self._connection
        if connection is not None:
            with translated(self._path):
                connection.interrupt()

    def exists(self) -> bool:
        """Whether this home has a database; raises `StoreError` for a home that may not be read."""
        return has_database(self.home)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, translated(self._path):
            yield self._open()

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """A block whose queries all see the same state of the database."""
        with self._reading() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                if db.in_transaction:
                    db.execute("COMMIT")

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._in_memory and self.exists():
            self.close()
        if self._connection is None:
            connection = open_for_reading(self.home)
            self._in_memory = connection is None
            self._connection = _published_only() if connection is None else connection
            self._opened += 1
        return self._connection

    def data_version(self) -> int:
        """A number that changes when another connection has written."""
        with self._reading() as db:
            return int(self._opened << 32 | db.execute("PRAGMA data_version").fetchone()[0])

    # Lists

    def runs(
        self,
        source: Sequence[Source] = ("mine",),
        limit: int | None = None,
        text: str = "",
        states: Sequence[str] | None = None,
        before: str | None = None,
        sort: Sort = "created_at",
        *,
        above: str | None = None,
        offset: int = 0,
        descending: bool | None = None,
    ) -> list[RunSummary]:
        """One page of runs: newest first, or ascending by another column; `descending` overrides the direction.

        `text`: words that must all occur in label, id, model, GPU or provider. `before`: the page after
        this run. `above`: the `limit` runs directly above it. `offset` skips that many more.
        """
        with self._snapshot() as db:
            return listing.page(
                db,
                Filter(source, text, states),
                limit=limit,
                before=before,
                above=above,
                offset=offset,
                sort=sort,
                descending=descending,
            )

    def count(self, source: Sequence[Source] = ("mine",), text: str = "", states: Sequence[str] | None = None) -> int:
        """How many runs pass this filter."""
        with self._snapshot() as db:
            return listing.count(db, Filter(source, text, states))

    def unfinished(self) -> list[RunSummary]:
        """The runs that have not ended, newest first."""
        with self._snapshot() as db:
            return listing.unfinished(db)

    def resolve(self, prefix: str) -> str:
        """The one run id with this prefix, or the operator's newest run for "last".

        Raises `UsageError`: `run_unknown`, `run_ambiguous`.
        """
        if prefix == "last":
            newest = self.runs(limit=1)
            if not newest:
                raise UsageError("There are no runs yet.", "Start one with `glasshouse demo`.", code="run_unknown")
            return newest[0].id
        with self._reading() as db:
            matches = [
                str(row["id"])
                for row in db.execute(
                    "SELECT id FROM runs WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
                    (prefix, prefix + "\U0010ffff", _AMBIGUOUS_SHOWN + 1),
                )
            ]
        if prefix in matches or (prefix and len(matches) == 1):
            return matches[0]
        if prefix and matches:
            shown = ", ".join(matches[:_AMBIGUOUS_SHOWN]) + (", ..." if len(matches) > _AMBIGUOUS_SHOWN else "")
            raise UsageError(
                f"Several runs begin with {prefix}: {shown}.", "Give more characters of the id.", code="run_ambiguous"
            )
        raise UsageError(f"There is no run {prefix}.", "List the runs with `glasshouse runs`.", code="run_unknown")

    # One run

    def run(self, run_id: str) -> RunView:
        """One run, whole; raises `UsageError` (`run_unknown`)."""
        with self._snapshot() as db:
            run = states.key_of(db, run_id)
            row = db.execute(
                f"""SELECT {listing.COLUMNS}, plans.body AS plan, plans.digest,
                    results.body AS result, results.checks
                FROM runs {listing.JOIN} LEFT JOIN plans ON plans.run = runs.key
                LEFT JOIN results ON results.run = runs.key WHERE runs.key = ?""",  # noqa: S608  the columns are constants
                (run,),
            ).fetchone()
            segments = db.execute("SELECT * FROM segments WHERE run = ? ORDER BY position", (run,)).fetchall()
            stored = "SELECT body FROM evidence WHERE run = ? AND kind = ?"
            controls = db.execute(stored, (run, "enforcement")).fetchone()
            environment = db.execute(stored, (run, "environment")).fetchone()
            evaluated = db.execute(
                "SELECT body FROM events WHERE run = ? AND event = ? ORDER BY id", (run, TRAIN_EVALUATED)
            ).fetchall()
            moves = db.execute(
                "SELECT id, subject, state, at, reason, error FROM transitions WHERE run = ? ORDER BY id", (run,)
            ).fetchall()
        return RunView(
            summary=listing.summary(row),
            plan=None if row["plan"] is None else parse(row["plan"]),
            plan_digest=row["digest"],
            segments=tuple(_segment(segment) for segment in segments),
            transitions=tuple(Transition(**{**dict(move), "error": read_failure(move)}) for move in moves),
            checks=() if row["checks"] is None else msgspec.convert(parse(row["checks"]), tuple[Check, ...]),
            row=None if row["result"] is None else parse(row["result"]),
            tier=row["tier"],
            ear_status=row["ear_status"],
            reason_codes=tuple(parse(row["reason_codes"])),
            enforcement=None if controls is None else parse(controls["body"]),
            environment=None if environment is None else parse(environment["body"]),
            evaluations=tuple(msgspec.convert(parse(one["body"]), TrainEvaluated) for one in evaluated),
        )

    def series(self, run_id: str, kind: Literal["raw", "protected"]) -> Series:
        """Every measured step of a segment: loss and time in nanoseconds; empty if there are none."""
        with self._snapshot() as db:
            segment = _segment_key(db, run_id, kind)
            if segment is None:
                return Series(losses=(), nanos=())
            losses, nanos = progress.read_losses(db, segment), progress.read_nanos(db, segment)
        return Series(losses=progress.unpack_losses(losses), nanos=progress.unpack_nanos(nanos))

    def series_points(self, run_id: str, kind: Literal["raw", "protected"], points: int) -> list[tuple[int, float]]:
        """At most `points` pairs of a step, counted from 1, and the mean loss since the previous pair.

        Pairs whose mean is not finite are left out.
        """
        with self._reading() as db:
            segment = _segment_key(db, run_id, kind)
            losses: Sequence[float] = (
                () if segment is None else progress.unpack_losses(progress.read_losses(db, segment))
            )
        pairs: list[tuple[int, float]] = []
        count = min(points, len(losses))
        for index in range(count):
            start, end = index * len(losses) // count, (index + 1) * len(losses) // count
            mean = sum(losses[start:end]) / (end - start)
            if math.isfinite(mean):
                pairs.append((end, mean))
        return pairs

    def event_counts(self, run_id: str, chain: Chain) -> dict[str, tuple[int, int]]:
        """By name, how many events of a log are stored and the bytes of their bodies; without progress events."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT event, count(*), sum(length(body)) FROM events WHERE run = ? AND chain = ? GROUP BY event",
                (states.key_of(db, run_id), chain),
            ).fetchall()
        return {row[0]: (row[1], row[2]) for row in rows}

    def log(self, run_id: str, after: int = 0, limit: int | None = None, *, last: int | None = None) -> list[LogLine]:
        """Lines of both logs after row id `after`, in order of arrival; `last` returns only that many of the newest.

        Progress events are left out: `series` returns their content.
        """
        with self._reading() as db:
            newest = last is not None
            rows = db.execute(
                f"""SELECT id, chain, seq, ts, event, body FROM events WHERE run = ? AND id > ?
                ORDER BY id {"DESC" if newest else "ASC"} LIMIT ?""",  # noqa: S608
                (states.key_of(db, run_id), after, last if newest else -1 if limit is None else limit),
            ).fetchall()
        return [
            LogLine(
                rowid=row["id"],
                chain=row["chain"],
                seq=row["seq"],
                ts=row["ts"],
                event=row["event"],
                body=parse(row["body"]),
            )
            for row in (reversed(rows) if newest else rows)
        ]

    def events(self, run_id: str, chain: Chain) -> list[Event]:
        """A whole log, progress events included, as it arrived: the chain's hashes can be checked again."""
        with self._snapshot() as db:
            return list(chains.read(db, states.key_of(db, run_id), run_id, chain))

    def tail(self, run_id: str, chain: Chain = "pod") -> Tail:
        """How far a log has been stored: (offset, head, next_seq)."""
        with self._reading() as db:
            return chains.tail(db, states.key_of(db, run_id), chain)

    def evidence(self, run_id: str) -> dict[str, Any]:
        """The run's evidence documents by kind."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT kind, body FROM evidence WHERE run = ? ORDER BY kind", (states.key_of(db, run_id),)
            )
            return {row["kind"]: parse(row["body"]) for row in rows}

    def receipts(self, run_id: str) -> dict[str, dict[str, Any]]:
        """The run's receipts by kind."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT kind, body FROM receipts WHERE run = ? ORDER BY kind", (states.key_of(db, run_id),)
            )
            return {row["kind"]: parse(row["body"]) for row in rows}

    # The rest

    def allocations(self, *, open_only: bool = False) -> list[AllocationView]:
        """The ledger, newest first; `open_only` leaves out what is gone or not ours."""
        with self._reading() as db:
            return ledger.read(db, open_only=open_only)

    def looked_for(self) -> list[AllocationView]:
        """The entries of the ledger that are gone and looked for again, newest first."""
        with self._reading() as db:
            return ledger.looked_for(db)

    def allocation(self, allocation_id: str) -> AllocationView | None:
        """One entry of the ledger by its id."""
        with self._reading() as db:
            return ledger.one(db, allocation_id)

    def allocation_of(self, run_id: str) -> AllocationView | None:
        """The run's entry; one that it kept may since have been taken up by another run."""
        with self._reading() as db:
            return ledger.of_run(db, states.key_of(db, run_id))

    def held_seconds(self, allocation_id: str, run_id: str) -> float | None:
        """How long a run had an allocation, until its end or until now; None if no clock can tell."""
        with self._reading() as db:
            return ledger.held_seconds(db, allocation_id, states.key_of(db, run_id))

    def runs_served(self, allocation_id: str) -> list[str]:
        """The ids of the runs that used an allocation, oldest first."""
        with self._reading() as db:
            return ledger.served(db, allocation_id)

    def is_claimed(self, allocation: str) -> bool:
        """Whether a running process has claimed a machine under this name."""
        with self._reading() as db:
            row = db.execute(
                "SELECT pid, start_ticks, boot FROM locks WHERE name = ?", (f"allocation:{allocation}",)
            ).fetchone()
        return row is not None and is_alive(*row)

    def pending_requests(self, run_id: str | None) -> list[Request]:
        """The open requests to a run's runner, oldest first."""
        with self._snapshot() as db:
            return requests.pending(db, run_id)

    def setting(self, name: str) -> str | None:
        """A setting of console or command line, None if it was never set."""
        with self._reading() as db:
            row = db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row["value"])


def _published_only() -> sqlite3.Connection:
    from engine.store.schema import STEPS  # noqa: PLC0415  needed only where there is no database

    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    for _, step in STEPS:
        step(connection)
    return connection


def _segment_key(db: sqlite3.Connection, run_id: str, kind: str) -> int | None:
    row = db.execute(
        "SELECT key FROM segments WHERE run = ? AND kind = ?", (states.key_of(db, run_id), kind)
    ).fetchone()
    return None if row is None else int(row["key"])


def _segment(row: sqlite3.Row) -> SegmentView:
    return SegmentView(
        kind=row["kind"],
        position=row["position"],
        state=row["state"],
        reason=row["reason"],
        error=read_failure(row) or (failure_of(row["reason"]) if row["state"] == "failed" else None),
        stop_reason=row["stop_reason"],
        steps=row["steps"],
        elapsed_sec=row["elapsed_ns"] / 1e9 if row["elapsed_ns"] else None,
        last_loss=row["last_loss"],
        final_loss=row["final_loss"],
        adapter_sha256=row["adapter_sha256"],
        tensor_digest=row["tensor_digest"],
        phases=parse(row["phases"]),
    )
