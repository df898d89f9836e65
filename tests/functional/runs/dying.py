"""A runner that stops itself: `dying.py SIGNAL POINT --home DIR --run ID`. SIGKILL kills it, SIGSTOP suspends it.

Points right after something was committed: `evidence:KIND`, `event:NAME` (of the allocation's log),
`state:SUBJECT:STATE`, and `next`: the first commit of a state that neither the run, its parts nor its allocation has
been in before. Right before an async function is called: `call:MODULE:NAME`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from engine.runner.__main__ import main
from engine.store.home import database_path
from engine.store.writer import Writer

_reached: list[bool] = []
_held: list[bool] = []


def _stop() -> None:
    """Stop once only: a resumed runner may pass the same point again."""
    if not _held:
        _held.append(True)
        os.kill(os.getpid(), SIGNAL)


def _after_each(methods: Iterable[str], is_the_point: Callable[..., bool]) -> None:
    """Stop once a call to one of the writer's methods, with these arguments, is committed."""

    def stop_if_committed(writer: Writer) -> None:
        if _reached and not writer._connection.in_transaction:
            _stop()

    for method in methods:
        real = getattr(Writer, method)

        def wrapped(self: Writer, *args: Any, real: Any = real, **fields: Any) -> Any:
            result = real(self, *args, **fields)
            if is_the_point(*args):
                _reached.append(True)
            stop_if_committed(self)
            return result

        setattr(Writer, method, wrapped)
    transaction = Writer.transaction

    @contextlib.contextmanager
    def wrapped_transaction(self: Writer) -> Iterator[None]:
        with transaction(self):
            yield
        if is_the_point():
            _reached.append(True)
        stop_if_committed(self)

    setattr(Writer, "transaction", wrapped_transaction)  # noqa: B010


def _after(method: str, is_the_point: Callable[..., bool]) -> None:
    _after_each([method], lambda *args: len(args) > 0 and is_the_point(*args[1:]))


def _after_the_next_state(home: str, run_id: str) -> None:
    """Stop after the commit of any state that this run or its allocation has not been in."""
    path = database_path(Path(home))

    def entered() -> set[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(path)) as db:
            return set(
                db.execute(
                    """SELECT subject, transitions.state FROM transitions JOIN runs ON runs.key = run WHERE runs.id = ?1
                    UNION ALL SELECT 'allocation', allocation_moves.state FROM allocation_moves
                    JOIN allocations ON allocations.id = allocation JOIN runs ON runs.key = allocations.run
                    WHERE runs.id = ?1""",
                    (run_id,),
                )
            )

    before = entered()
    methods = ("transition", "allocation_intent", "allocation_state", "finish", "ingest")
    _after_each(methods, lambda *_: bool(entered() - before))


def _stop_before(module: str, name: str) -> None:
    target = importlib.import_module(module)
    real = getattr(target, name)

    async def wrapped(*args: Any, **options: Any) -> Any:
        _stop()
        return await real(*args, **options)

    setattr(target, name, wrapped)


if __name__ == "__main__":
    SIGNAL = signal.Signals[sys.argv.pop(1)]
    kind, *point = sys.argv.pop(1).split(":")
    if kind == "next":
        _after_the_next_state(sys.argv[2], sys.argv[4])
    elif kind == "call":
        _stop_before(*point)
    elif kind == "evidence":
        _after("evidence", lambda evidence_kind, body: evidence_kind == point[0])
    elif kind == "event":
        _after("ingest", lambda events, offset: any(event.event == point[0] for event in events))
    else:
        _after("transition", lambda subject, state, reason="": [subject, state] == point)
    raise SystemExit(main())
