"""What the parts of a runner share about one run."""

from __future__ import annotations

import contextlib
import sys

from engine.errors import StoreError
from engine.plan import Plan
from engine.runner.folder import RunFolder
from engine.runner.ingest import Ingest
from engine.runner.journal import Journal
from engine.runner.staging import Staging
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.system.text import visible
from engine.wire import utc_now


class RunContext:
    """One run's store, log, folder and staging. `cancelled` becomes true once the user requests to cancel the run."""

    def __init__(
        self,
        run_id: str,
        plan: Plan,
        writer: Writer,
        reader: Reader,
        journal: Journal,
        ingest: Ingest,
        folder: RunFolder,
        staging: Staging,
    ) -> None:
        self.run_id = run_id
        self.plan = plan
        self.writer = writer
        self.reader = reader
        self.journal = journal
        self.ingest = ingest
        self.folder = folder
        self.staging = staging
        self.cancelled = False

    def note(self, text: str) -> None:
        """Warn the operator: a line in the runner's log file and in the run's history."""
        sys.stderr.write(f"{utc_now()} {visible(text)}\n")
        sys.stderr.flush()
        with contextlib.suppress(StoreError):
            self.writer.warn(self.run_id, text)
