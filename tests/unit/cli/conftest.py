"""A home with a real store, and a run in it that tests advance as a runner would."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from engine.plan import Plan, preset
from engine.store.reader import Reader
from engine.store.views import Check, RunView
from engine.store.writer import Writer
from engine.wire import TRAIN_PROGRESS, ChainWriter
from glasshouse_tui.commands.base import Session

Kind = Literal["raw", "protected"]


class Scene:
    """One run of a home, with this process as its runner unless created with `owned=False`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.session = Session(chosen_home=str(home))
        self.writer = Writer(home)
        self.reader = Reader(home)
        self.run_id = ""
        self._chain = ChainWriter("")
        self._steps = {"raw": 0, "protected": 0}

    def create(self, run_id: str = "a1b2c3d4e5f6", plan: Plan | None = None, *, owned: bool = True) -> str:
        """Create a run; if `owned`, this process is its runner, else it has none."""
        self.writer.create_run(run_id, plan or preset("demo"))
        if owned:
            self.writer.claim_runner(run_id, os.getpid())
        self.run_id, self._chain = run_id, ChainWriter(run_id)
        return run_id

    def move(self, subject: str, state: str, reason: str = "") -> None:
        """Record a transition."""
        self.writer.transition(self.run_id, subject, state, reason)

    def train(self, kind: Kind, losses: Sequence[float], step_seconds: float = 0.01) -> None:
        """Record measured steps of a segment, as the allocation reports them."""
        first = self._steps[kind]
        self._steps[kind] += len(losses)
        nanos = [round(step_seconds * 1e9)] * len(losses)
        body = {
            "segment": kind,
            "from": first,
            "to": first + len(losses),
            "losses": base64.b64encode(struct.pack(f"<{len(losses)}f", *losses)).decode(),
            "nanos": base64.b64encode(struct.pack(f"<{len(nanos)}Q", *nanos)).decode(),
        }
        self.writer.ingest(self.run_id, [self._chain.append(TRAIN_PROGRESS, body)], self._chain.next_seq)

    def finish(
        self,
        *,
        clean: bool | None = True,
        state: Literal["finished", "failed", "cancelled"] = "finished",
        checks: Sequence[Check] = (),
        **row: Any,
    ) -> None:
        """Record the row and end the run."""
        body = {"id": self.run_id, "label": "demo", "clean": clean, "overheadPct": None, **row}
        self.writer.finish(self.run_id, body, checks, state)

    def view(self) -> RunView:
        """The run as readers see it."""
        return self.reader.run(self.run_id)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A new home with an open store."""
    scene = Scene(tmp_path / "home")
    yield scene
    scene.writer.close()
    scene.reader.close()
