"""The runner's own log: a second chain, each event linked into it before what it announces is done."""

from __future__ import annotations

from typing import Any

from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.wire import ChainWriter, Event


class Journal:
    """Appends to the runner's chain in the store; continues where an earlier runner stopped."""

    def __init__(self, writer: Writer, reader: Reader, run_id: str) -> None:
        self._writer = writer
        self._reader = reader
        self._run_id = run_id
        tail = writer.tail(run_id, "runner")
        self._chain = ChainWriter(run_id, head=tail.head, next_seq=tail.next_seq)

    @property
    def head(self) -> str:
        """The hash of the last event."""
        return self._chain.head

    def add(self, event: str, body: dict[str, Any]) -> Event:
        """Append one event; it is committed when this returns."""
        made = self._chain.append(event, body)
        self._writer.append_events(self._run_id, "runner", [made])
        return made

    def find(self, event: str) -> Event | None:
        """The first event of this name, or None."""
        return next((one for one in self._reader.events(self._run_id, "runner") if one.event == event), None)

    def last(self, event: str, segment: str | None = None) -> dict[str, Any] | None:
        """The body of the last event of this name (of one segment, if asked), or None."""
        found = [
            one.body
            for one in self._reader.events(self._run_id, "runner")
            if one.event == event and (segment is None or one.body.get("segment") == segment)
        ]
        return found[-1] if found else None

    def once(self, event: str, body: dict[str, Any]) -> Event:
        """The event of this name, appended if an earlier runner did not come to it."""
        return self.find(event) or self.add(event, body)
