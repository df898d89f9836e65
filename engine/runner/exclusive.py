"""Exclusive use of a machine: one run at a time, so that runs do not distort each other's timings.

Three things can occupy a machine: another runner of this home (a lock in the store), a supervisor of this home whose
runner died (it continues to train), and a run of another home or operator (a lock file on the host, where the provider
has one).
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import GlasshouseError
from engine.plan import FREE, Plan, load_stored_plan
from engine.providers.protocol import Exclusive, Lease, Provider, Spec
from engine.providers.settings import Settings
from engine.remote.host_lock import renewed
from engine.remote.launch import Launched
from engine.remote.reconnect import Reconnecting
from engine.runner.folder import RunFolder
from engine.runner.spec import spec_for
from engine.runner.staging import LAUNCHED
from engine.store.reader import Reader
from engine.store.views import RunSummary
from engine.store.writer import Writer
from engine.system.processes import is_alive

HOST_QUERY_SECONDS: Final = 15.0
"""Between two queries of a busy host: each query is a login, which disturbs the timed training there."""


class ExclusiveUse:
    """One run's exclusive use of its machine. Where the provider rents one per run there is nothing to lock."""

    def __init__(
        self,
        home: Path,
        writer: Writer,
        reader: Reader,
        provider: Provider,
        plan: Plan,
        settings: Settings,
        run_id: str,
    ) -> None:
        self._home = home
        self._writer = writer
        self._reader = reader
        self._provider = provider
        self._plan = plan
        self._settings = settings
        self._run_id = run_id
        self._host_holder: str | None = None
        self._queried_at = float("-inf")

    async def take(self) -> str | None:
        """Lock the machine for this run: None on success, otherwise why it is occupied, for the run's `reason`."""
        if not self._plan.provider.kind.exclusive:
            return None
        reason = self.take_lock() or self._running_supervisor() or await self._held_on_the_host()
        if reason is not None:
            self.release_lock()
        return reason

    def take_lock(self) -> str | None:
        """Take this home's lock only, for a run whose supervisor is already on the machine; None on success."""
        taken = self._writer.claim_allocation(lock_name(self._plan))
        return None if taken else "another run has this allocation"

    def release_lock(self) -> None:
        """Release this home's lock, if this process holds it."""
        self._writer.release_allocation(lock_name(self._plan))

    def renewed(self, link: Reconnecting, lease: Lease) -> contextlib.AbstractAsyncContextManager[None]:
        """Renew the lock on the host while the context lasts; once launched, the supervisor holds it."""
        if not isinstance(self._provider, Exclusive):
            return contextlib.nullcontext()
        return renewed(link, lease.root, self._run_id, lease.python)

    async def release_host(self) -> None:
        """Release the lock on the host, for a run that acquired nothing. Without renewal it also expires."""
        if isinstance(self._provider, Exclusive):
            with contextlib.suppress(GlasshouseError):
                await self._provider.let_go(self._spec(), self._run_id)

    def _running_supervisor(self) -> str | None:
        other = running_supervisor(self._reader, self._home, self._run_id, lock_name(self._plan))
        if other is None:
            return None
        if other.orphaned:
            return f"run {other.id} is still training here and has no runner: resume or cancel it"
        return "another run has this allocation"

    async def _held_on_the_host(self) -> str | None:
        if not isinstance(self._provider, Exclusive):
            return None
        if self._host_holder is None or time.monotonic() - self._queried_at > HOST_QUERY_SECONDS:
            self._host_holder = await self._provider.claim(self._spec(), self._run_id)
            self._queried_at = time.monotonic()
        return self._host_holder

    def _spec(self) -> Spec:
        return spec_for(self._home, self._plan, self._settings, self._run_id)


def lock_name(plan: Plan) -> str:
    """The name of the machine's lock in the store."""
    return f"{plan.provider.name}:{plan.provider.allocation or 'default'}"


def running_supervisor(reader: Reader, home: Path, run_id: str, lock: str) -> RunSummary | None:
    """Another unfinished run whose supervisor is alive; only processes of this machine can be checked.

    The lock of a dead runner is free, but its supervisor continues to train.
    """
    for summary in reader.unfinished():
        if summary.id == run_id:
            continue
        launched = RunFolder(home, summary.id).read(LAUNCHED)
        if launched is None:
            continue
        if summary.provider not in FREE or lock_name(load_stored_plan(reader.run(summary.id).plan)) != lock:
            continue
        supervisor = msgspec.json.decode(launched, type=Launched)
        if is_alive(supervisor.pid, supervisor.start):
            return summary
    return None
