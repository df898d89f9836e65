"""The runner's own log: a second chain, each event linked into it before what it announces is done."""

from __future__ import annotations

from typing import Any

from engine.store.writer import Writer
from engine.wire import ChainWriter, Event


class Journal:
    """Appends to the runner's chain in the store; continues where an earlier runner stopped."""

    def __init__(self, writer: Writer, run_id: str) -> None:
        self._writer = writer
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
