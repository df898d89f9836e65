"""What the segments of one run share on the allocation."""

from __future__ import annotations

import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.errors import RunError
from engine.events import Machine
from engine.worker.children import Bundle
from engine.worker.event_log import EventLog
from engine.worker.inbox import Inbox
from engine.worker.job import Job


class Cancelled(RunError):
    """The runner requested a stop."""

    default_code = "cancelled"


class Context:
    """One run's folder, job, log, inbox and the attester's signing key.

    `memory` holds descriptors of the supervisor's own mem and smaps, opened before it was hardened; `enforcement` is
    the observed state of its own controls.
    """

    def __init__(
        self,
        folder: Path,
        job: Job,
        bundle: Bundle,
        log: EventLog,
        attester: Ed25519PrivateKey,
        identity: Machine,
        memory: tuple[int, int],
        enforcement: dict[str, dict[str, str]],
    ) -> None:
        self.folder = folder
        self.job = job
        self.plan = job.parsed_plan()
        self.bundle = bundle
        self.log = log
        self.attester = attester
        self.identity = identity
        self.memory = memory
        self.enforcement = enforcement
        self.inbox = Inbox(folder / "inbox")
        self._began = time.monotonic()

    @property
    def scratch(self) -> Path:
        """The only folder that a protected trainer may write in."""
        return self.folder / "scratch"

    @property
    def outbox(self) -> Path:
        """The folder that the runner collects results from."""
        return self.folder / "outbox"

    def lease_over(self) -> bool:
        """True once the job has run longer than its lease."""
        return time.monotonic() - self._began > self.job.limits.lease

    def give_up_if_cancelled(self) -> None:
        """Raise `Cancelled` once the runner requested a stop, `RunError` (`lease_expired`) once the lease is over."""
        if self.inbox.cancelled():
            raise Cancelled("The run was cancelled.")
        if self.lease_over():
            raise RunError("The lease of this run has expired.", code="lease_expired")
