"""A run's claim on a machine that other homes and operators use too; elsewhere there is nothing to claim."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

from engine.errors import GlasshouseError
from engine.plan import Plan
from engine.providers.protocol import Exclusive, Lease, Provider, Spec
from engine.providers.settings import load_settings
from engine.remote.host_lock import renewed
from engine.remote.reconnect import Reconnecting
from engine.runner.needs import spec_for

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
