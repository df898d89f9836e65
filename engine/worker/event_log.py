"""The allocation's own event log: append-only, hash-chained, readable by the runner while it grows."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from engine.events import Body, LogLine, Machine, SegmentState, fields_of, name_of
from engine.plan import SegmentKind, StopReason
from engine.wire import ChainWriter, Event, to_line

EVENTS_FILE: Final = "events.jsonl"
MAX_TEXT: Final = 2000


class EventLog:
    """Writes each event as one whole line."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._chain = ChainWriter(run_id)
        self._fd = os.open(folder / EVENTS_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._began = time.monotonic()

    @property
    def head(self) -> str:
        """The hash of the last event."""
        return self._chain.head

    @property
    def fd(self) -> int:
        """The descriptor of the open log file."""
        return self._fd

    def now(self) -> float:
        """Seconds on the supervisor's monotonic clock since the log began."""
        return round(time.monotonic() - self._began, 6)

    def add(self, body: Body) -> Event:
        """Append one event."""
        event = self._chain.append(name_of(type(body)), fields_of(body))
        line = to_line(event)
        while line:
            line = line[os.write(self._fd, line) :]
        return event

    def state(
        self,
        segment: SegmentKind,
        state: str,
        *,
        identity: Machine | None = None,
        code: str | None = None,
        stop_reason: StopReason | None = None,
    ) -> None:
        """Append a state change of a segment, stamped with seconds on the supervisor's monotonic clock."""
        self.add(
            SegmentState(
                segment=segment, state=state, at=self.now(), identity=identity, code=code, stop_reason=stop_reason
            )
        )

    def failed(self, segment: SegmentKind, code: str, message: str, *, stop_reason: StopReason | None = None) -> None:
        """Record that a segment failed: the sentence as a line for people, the code in the published state."""
        self.note(message, code=code)
        self.state(segment, "failed", code=code, stop_reason=stop_reason)

    def note(self, text: str, *, code: str | None = None) -> None:
        """Append a line for people to read."""
        self.add(LogLine(text=text[:MAX_TEXT], code=code))
