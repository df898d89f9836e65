"""A runner that kills itself right after it committed something: `dying.py POINT --home DIR --run ID`.

Points: `evidence:KIND`, `event:NAME` (of the allocation's log), `state:SUBJECT:STATE`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from engine.runner.__main__ import main
from engine.store.writer import Writer


def _die_after(method: str, is_the_point: Callable[..., bool]) -> None:
    real = getattr(Writer, method)

    def wrapped(self: Writer, run_id: str, *args: Any, **fields: Any) -> Any:
        result = real(self, run_id, *args, **fields)
        if is_the_point(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(Writer, method, wrapped)


if __name__ == "__main__":
    how, *what = sys.argv.pop(1).split(":")
    if how == "evidence":
        _die_after("evidence", lambda kind, body: kind == what[0])
    elif how == "event":
        _die_after("ingest", lambda events, offset: any(event.event == what[0] for event in events))
    else:
        _die_after("transition", lambda subject, state, reason="": [subject, state] == what)
    raise SystemExit(main())
