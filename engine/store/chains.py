"""A run's two event logs in the database: stored exactly once, read back byte for byte."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from engine.errors import WireError
from engine.events import Chain
from engine.store import progress
from engine.wire import GENESIS, TRAIN_PROGRESS, ChainWriter, Event, canonical, parse, utc_text

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Tail(NamedTuple):
    """How far a log has been stored: byte offset in the file, the last event's hash, the next `seq`."""

    offset: int
    head: str
    next_seq: int


def tail(connection: sqlite3.Connection, run: int, chain: Chain) -> Tail:
    """The tail of one log, (0, GENESIS, 0) before its first event."""
    row = connection.execute(
        "SELECT byte_offset, head, next_seq FROM tails WHERE run = ? AND chain = ?", (run, chain)
    ).fetchone()
    return Tail(*row) if row is not None else Tail(0, GENESIS, 0)


def append(
    connection: sqlite3.Connection, run: int, chain: Chain, events: Sequence[Event], offset: int | None = None
) -> int:
    """Store the events that are new, inside the caller's transaction; returns their number.

    Progress events of the pod go into the series and the segment's counters. Raises `WireError`
    (`log_chain_broken`, `progress_invalid`), after which the caller rolls back.
    """
    stored = tail(connection, run, chain)
    new_events = [event for event in events if event.seq >= stored.next_seq]
    head, seq = stored.head, stored.next_seq
    progress_events: list[tuple[Event, progress.Steps]] = []
    for event in new_events:
        if event.seq != seq or event.prev != head:
            raise WireError("The log's chain is broken: a line is missing or out of order.", code="log_chain_broken")
        head, seq = event.hash, seq + 1
        if chain == "pod" and event.event == TRAIN_PROGRESS:
            progress_events.append((event, progress.steps_of(event.body)))
        else:
            connection.execute(
                "INSERT INTO events (run, chain, seq, ts, event, body, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    run,
                    chain,
                    event.seq,
                    event.ts,
                    event.event,
                    canonical(event.body).decode(),
                    bytes.fromhex(event.hash),
                ),
            )
    for kind in ("raw", "protected"):
        _store_progress(connection, run, kind, [item for item in progress_events if item[1].kind == kind])
    if new_events or (offset is not None and offset > stored.offset):
        connection.execute(
            "INSERT OR REPLACE INTO tails (run, chain, next_seq, head, byte_offset) VALUES (?, ?, ?, ?, ?)",
            (run, chain, seq, head, stored.offset if offset is None else offset),
        )
    return len(new_events)


def _store_progress(
    connection: sqlite3.Connection, run: int, kind: str, progress_events: list[tuple[Event, progress.Steps]]
) -> None:
    if not progress_events:
        return
    segment = connection.execute(
        "SELECT key, elapsed_ns FROM segments WHERE run = ? AND kind = ?",
        (run, kind),
    ).fetchone()
    if segment is None:
        raise WireError(
            f"The allocation reports steps of a {kind} segment that the plan lacks.", code="progress_invalid"
        )
    stored_steps = expected = progress.length(connection, segment["key"])
    for event, steps in progress_events:
        if steps.first != expected:
            raise WireError("A progress event does not continue its series.", code="progress_invalid")
        expected += steps.count
        connection.execute(
            "INSERT INTO progress (run, seq, ts, protected, first, count) VALUES (?, ?, ?, ?, ?, ?)",
            (run, event.seq, short_time(event.ts), kind == "protected", steps.first, steps.count),
        )
    losses = b"".join(steps.losses for _, steps in progress_events)
    nanos = b"".join(steps.nanos for _, steps in progress_events)
    if not losses:
        return
    progress.extend(connection, segment["key"], stored_steps, losses, nanos)
    last_loss = progress.unpack_losses(losses[-progress.LOSS_BYTES :])[0]
    elapsed = segment["elapsed_ns"] + sum(progress.unpack_nanos(nanos))
    if elapsed > progress.MOST_NANOS:
        raise WireError("The allocation reports impossible step times.", code="progress_invalid")
    connection.execute(
        "UPDATE segments SET steps = ?, elapsed_ns = ?, last_loss = ? WHERE key = ?",
        (expected, elapsed, last_loss if math.isfinite(last_loss) else None, segment["key"]),
    )


def read(connection: sqlite3.Connection, run: int, run_id: str, chain: Chain) -> Iterator[Event]:
    """Every event of one log in order, as it was stored; hold a read transaction around it."""
    head = GENESIS
    progress_rows = _progress_events(connection, run) if chain == "pod" else iter(())
    progress_row = next(progress_rows, None)
    rows: Iterable[sqlite3.Row] = connection.execute(
        "SELECT seq, ts, event, body, hash FROM events WHERE run = ? AND chain = ? ORDER BY seq", (run, chain)
    )
    for row in rows:
        while progress_row is not None and progress_row[0] < row["seq"]:
            event = _rebuilt(run_id, head, progress_row)
            head, progress_row = event.hash, next(progress_rows, None)
            yield event
        event = Event(
            seq=row["seq"],
            prev=head,
            ts=row["ts"],
            event=row["event"],
            run_id=run_id,
            body=parse(row["body"]),
            hash=row["hash"].hex(),
        )
        head = event.hash
        yield event
    while progress_row is not None:
        event = _rebuilt(run_id, head, progress_row)
        head, progress_row = event.hash, next(progress_rows, None)
        yield event


def _rebuilt(run_id: str, head: str, progress_row: tuple[int, str, dict[str, Any]]) -> Event:
    seq, ts, body = progress_row
    return ChainWriter(run_id, head=head, next_seq=seq).append(TRAIN_PROGRESS, body, ts=ts)


def _progress_events(connection: sqlite3.Connection, run: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
    series = {
        row["kind"]: (
            progress.read_losses(connection, row["key"]),
            progress.read_nanos(connection, row["key"]),
        )
        for row in connection.execute("SELECT key, kind FROM segments WHERE run = ?", (run,))
    }
    rows = connection.execute(
        "SELECT seq, ts, protected, first, count FROM progress WHERE run = ? ORDER BY seq", (run,)
    )
    for row in rows:
        kind = "protected" if row["protected"] else "raw"
        losses, nanos = series[kind]
        first, last = row["first"], row["first"] + row["count"]
        steps = progress.Steps(
            kind,
            first,
            losses[first * progress.LOSS_BYTES : last * progress.LOSS_BYTES],
            nanos[first * progress.NANO_BYTES : last * progress.NANO_BYTES],
        )
        yield row["seq"], long_time(row["ts"]), progress.body_of(steps)


def short_time(ts: str) -> int | str:
    """Milliseconds since 1970 if `long_time` turns them back into exactly this text, else the text."""
    try:
        moment = datetime.fromisoformat(ts)
        millis = (moment - _EPOCH) // timedelta(milliseconds=1) if moment.tzinfo else None
    except ValueError:
        return ts
    return millis if millis is not None and long_time(millis) == ts else ts


def long_time(stored: int | str) -> str:
    """The text for which `short_time` returned this value."""
    if isinstance(stored, str):
        return stored
    moment = _EPOCH + timedelta(milliseconds=stored)
    return utc_text(moment)
