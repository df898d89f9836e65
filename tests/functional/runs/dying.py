"""A runner that stops itself: `dying.py SIGNAL POINT --home DIR --run ID`. SIGKILL ends it, SIGSTOP holds it.

Points right after something was committed: `evidence:KIND`, `event:NAME` (of the allocation's log),
`state:SUBJECT:STATE`, and `next`: whatever state of the run, its parts or its allocation is entered that was never
entered before. Right before a function that is awaited: `call:MODULE:NAME`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.runner.__main__ import main
from engine.store.home import database_path
from engine.store.writer import Writer


def _stop() -> None:
    os.kill(os.getpid(), SIGNAL)


def _stop_after(method: str, is_the_point: Callable[..., bool]) -> None:
    real = getattr(Writer, method)

    def wrapped(self: Writer, run_id: str, *args: Any, **fields: Any) -> Any:
        result = real(self, run_id, *args, **fields)
        if is_the_point(*args):
            _stop()
        return result

    setattr(Writer, method, wrapped)


def _stop_at_the_next_state(home: str, run_id: str) -> None:
    """After the commit of any state that this run, or its allocation, has not been in."""
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
    for method in ("transition", "allocation_intent", "allocation_state", "finish", "ingest"):
        real = getattr(Writer, method)

        def wrapped(self: Writer, *args: Any, real: Any = real, **fields: Any) -> Any:
            result = real(self, *args, **fields)
            if entered() - before:
                _stop()
            return result

        setattr(Writer, method, wrapped)


def _stop_before(module: str, name: str) -> None:
    place = importlib.import_module(module)
    real = getattr(place, name)

    async def wrapped(*args: Any, **more: Any) -> Any:
        _stop()
        return await real(*args, **more)

    setattr(place, name, wrapped)


if __name__ == "__main__":
    SIGNAL = signal.Signals[sys.argv.pop(1)]
    how, *what = sys.argv.pop(1).split(":")
    if how == "next":
        _stop_at_the_next_state(sys.argv[2], sys.argv[4])
    elif how == "call":
        _stop_before(*what)
    elif how == "evidence":
        _stop_after("evidence", lambda kind, body: kind == what[0])
    elif how == "event":
        _stop_after("ingest", lambda events, offset: any(event.event == what[0] for event in events))
    else:
        _stop_after("transition", lambda subject, state, reason="": [subject, state] == what)
    raise SystemExit(main())
