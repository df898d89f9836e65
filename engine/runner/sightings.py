"""When the runner saw the training begin, pass its checkpoints and end: logged with the events, by the boot clock.

An allocation times its own steps. What bounds these times is when the runner saw their events, and when it had last
looked without seeing them.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from engine.events import Sighting, TrainObserved
from engine.remote.tail import Tail, Tailed
from engine.runner.journal import Journal
from engine.store.readings import Reading
from engine.store.writer import Writer
from engine.system.clock import boot_id, boot_micros
from engine.wire import TRAIN_CHECKPOINT, TRAIN_FINISHED, TRAIN_MEASURED, TRAIN_STARTED, Event, sha256_hex

OBSERVED: Final = (TRAIN_STARTED, TRAIN_CHECKPOINT, TRAIN_MEASURED, TRAIN_FINISHED)


class Sightings:
    """Reads the log, and logs what each reading brought of the training."""

    def __init__(self, writer: Writer, journal: Journal, run_id: str) -> None:
        self._writer = writer
        self._journal = journal
        self._run_id = run_id
        # Without a boot id no earlier time can be compared with, not even one of the runner before this one.
        self._clock = sha256_hex(f"{run_id}:{boot_id() or secrets.token_hex()}".encode())
        stored = writer.last_reading(run_id)
        known = stored is not None and stored.clock == self._clock
        self._base = stored.base if stored is not None and known else boot_micros()
        self._after = stored.began if stored is not None and known else None
        self._began = self._at = self._base
        self._drained = False

    def nothing_yet(self) -> None:
        """Record that the log is empty now: call before the supervisor is launched.

        An earlier runner may have launched it and died before it knew: then only that runner's time is a bound.
        """
        if self._writer.last_reading(self._run_id) is not None:
            return
        self._after = boot_micros()
        self._keep(self._after)

    async def read(self, tail: Tail) -> list[Tailed]:
        """What `tail.poll` returns, timed; raises as it does. Call `note` and `settle` for what it returned."""
        self._began = boot_micros()
        received = await tail.poll()
        self._at = boot_micros()
        self._drained = tail.drained
        if not received:
            self.settle()
        return received

    def note(self, events: Sequence[Event]) -> None:
        """Log which of these new events are the training's; part of the transaction that stores them."""
        seen = [_sighting(event) for event in events if event.event in OBSERVED]
        if seen:
            after = None if self._after is None else self._after - self._base
            self._journal.add(TrainObserved(seen=seen, after=after, at=self._at - self._base, clock=self._clock))
        if events and self._drained:
            self._keep(self._began)

    def settle(self) -> None:
        """Call once everything that a reading brought is stored: what comes later was not there when it began."""
        if self._drained:
            self._after = self._began

    def _keep(self, began: int) -> None:
        self._writer.keep_reading(self._run_id, Reading(self._clock, self._base, began))


def _sighting(event: Event) -> Sighting:
    body = event.body
    step = body["step"] if event.event == TRAIN_CHECKPOINT else None
    return Sighting(event=event.event, segment=body["segment"], step=step, hash=event.hash)  # type: ignore[arg-type]
