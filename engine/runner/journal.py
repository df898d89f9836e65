"""The runner's own log: a second chain. Each event is committed before the action that it announces."""

from __future__ import annotations

from engine.events import Body, BodyT, fields_of, name_of, read_body
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.wire import ChainWriter, Event


class Journal:
    """Appends to the runner's chain in the store, which alone knows its end: a transaction that fails moves nothing."""

    def __init__(self, writer: Writer, reader: Reader, run_id: str) -> None:
        self._writer = writer
        self._reader = reader
        self._run_id = run_id

    @property
    def head(self) -> str:
        """The hash of the last event."""
        return self._writer.tail(self._run_id, "runner").head

    def add(self, body: Body) -> Event:
        """Append one event; it is committed when this returns, or with the transaction that is open."""
        with self._writer.transaction():
            end = self._writer.tail(self._run_id, "runner")
            chain = ChainWriter(self._run_id, head=end.head, next_seq=end.next_seq)
            event = chain.append(name_of(type(body)), fields_of(body))
            self._writer.append_events(self._run_id, "runner", [event])
        return event

    def once(self, body: Body) -> Event:
        """The first event with this kind of body; this one is appended if an earlier runner did not append one."""
        stored = self._stored(type(body))
        return stored[0] if stored else self.add(body)

    def bodies(self, kind: type[BodyT]) -> list[BodyT]:
        """The bodies of all events of this kind, oldest first."""
        return [read_body(event, kind) for event in self._stored(kind)]

    def _stored(self, kind: type[Body]) -> list[Event]:
        name = name_of(kind)
        return [event for event in self._reader.events(self._run_id, "runner") if event.event == name]
