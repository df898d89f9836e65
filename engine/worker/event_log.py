"""The allocation's own event log: append-only, hash-chained, readable by the runner while it grows."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

from engine.wire import LOG, SEGMENT_STATE, ChainWriter, Event, to_line

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
        """The open file, for whoever must know which descriptors are ours."""
        return self._fd

    def add(self, event: str, body: dict[str, Any]) -> Event:
        """Append one event."""
        made = self._chain.append(event, body)
        line = to_line(made)
        while line:
            line = line[os.write(self._fd, line) :]
        return made

    def state(self, segment: str, state: str, **detail: Any) -> None:
        """Append a segment's change of state, stamped with seconds on the supervisor's monotonic clock."""
        at = round(time.monotonic() - self._began, 6)
        self.add(SEGMENT_STATE, {"segment": segment, "state": state, "at": at, **detail})

    def failed(self, segment: str, code: str, message: str, *, stop_reason: str | None = None) -> None:
        """A segment's end by failure: the sentence as a line for a person, the code in the published state."""
        self.note(message, code=code)
        self.state(segment, "failed", code=code, **({} if stop_reason is None else {"stopReason": stop_reason}))

    def note(self, text: str, **detail: Any) -> None:
        """Append a line for a person."""
        self.add(LOG, {"text": text[:MAX_TEXT], **detail})
