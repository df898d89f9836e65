"""Who may use a machine that one run at a time uses: locks of this home, and a claim that other homes see too."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import GlasshouseError
from engine.plan import Plan, load_plan
from engine.providers.protocol import Exclusive, Lease, Provider, Spec
from engine.providers.settings import load_settings
from engine.remote.host_lock import renewed
from engine.remote.launch import Launched
from engine.remote.reconnect import Reconnecting
from engine.runner.folder import RunFolder
from engine.runner.spec import spec_for
from engine.runner.staging import LAUNCHED
from engine.store.reader import Reader
from engine.store.views import RunSummary
from engine.system.processes import start_ticks

LOOK_SECONDS: Final = 15.0
"""Between two looks at a busy machine: each is a login, and somebody is being timed there."""


class Claim:
    """One run's claim. It lasts as long as the run's supervisor and is renewed until there is one."""

    def __init__(self, provider: Provider, plan: Plan, home: Path, run_id: str) -> None:
        self._provider = provider
        self._plan = plan
        self._home = home
        self._run_id = run_id
        self._told: str | None = None
        self._looked = 0.0

    async def take(self) -> str | None:
        """None when the machine is this run's, otherwise who had it at the last look, in words."""
        if not isinstance(self._provider, Exclusive):
            return None
        if self._told is None or time.monotonic() - self._looked > LOOK_SECONDS:
            self._told = await self._provider.claim(self._spec(), self._run_id)
            self._looked = time.monotonic()
        return self._told

    def kept(self, link: Reconnecting, lease: Lease) -> contextlib.AbstractAsyncContextManager[None]:
        """Renew it as long as the context lasts."""
        if not isinstance(self._provider, Exclusive):
            return contextlib.nullcontext()
        return renewed(link, lease.root, self._run_id, lease.python)

    async def let_go(self) -> None:
        """Give it up for a run that acquired nothing; a claim that nobody renews ends by itself."""
        if isinstance(self._provider, Exclusive):
            with contextlib.suppress(GlasshouseError):
                await self._provider.let_go(self._spec(), self._run_id)

    def _spec(self) -> Spec:
        return spec_for(self._home, self._plan, load_settings(self._home), self._run_id)


def lock_name(plan: Plan) -> str:
    """The name of the machine's lock."""
    return f"{plan.provider.name}:{plan.provider.allocation or 'default'}"


def at_work(reader: Reader, home: Path, run_id: str, lock: str) -> RunSummary | None:
    """Another run whose supervisor lives on this machine, whoever runs it; seen for the local provider only.

    A dead runner's lock is free, but its supervisor trains on: two at once would spoil each other's times.
    """
    for summary in reader.unfinished():
        if summary.id == run_id or not load_plan(reader.run(summary.id).plan).provider.kind.on_this_machine:
            continue
        raw = RunFolder(home, summary.id).read(LAUNCHED)
        if raw is None or lock_name(load_plan(reader.run(summary.id).plan)) != lock:
            continue
        launched = msgspec.json.decode(raw, type=Launched)
        if start_ticks(launched.pid) == launched.start:
            return summary
    return None
