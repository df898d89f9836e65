"""A real allocation for a module of tests: the local provider's SSH server in its own process."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.providers.local.files import Ready, read_ready
from engine.providers.local.provider import LocalProvider
from engine.providers.protocol import Lease, Spec, allocation_name
from engine.remote.endpoint import LinkLimits
from engine.remote.session import SshSession
from engine.system.processes import is_alive

LIMITS = LinkLimits(
    connect=30,
    login=30,
    keepalive_interval=1.0,
    keepalive_count=4,
    retry_first=0.05,
    retry_most=0.2,
    give_up=60,
)


@dataclass
class Allocation:
    """A local allocation and its server."""

    provider: LocalProvider
    lease: Lease
    limits: LinkLimits

    @property
    def folder(self) -> Path:
        return Path(self.lease.root).parent

    @property
    def root(self) -> Path:
        return Path(self.lease.root)

    def ready(self) -> Ready:
        ready = read_ready(self.folder)
        assert ready is not None
        return ready

    def kill_server(self) -> None:
        """Kill the server, as when the machine's sshd dies; returns once it is gone."""
        ready = self.ready()
        os.kill(ready.pid, signal.SIGKILL)
        while is_alive(ready.pid, ready.start):
            pass

    async def session(self) -> SshSession:
        """A new session; the server is restarted first if it is dead."""
        self.lease = await self.provider.wait_ready(self.lease)
        return await self.provider.open_session(self.lease)


@pytest.fixture(scope="module")
def allocation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Allocation]:
    provider = LocalProvider(tmp_path_factory.mktemp("home"), LIMITS)
    lease = asyncio.run(provider.acquire(Spec(name=allocation_name("test", "run")), "run"))
    made = Allocation(provider, lease, LIMITS)
    yield made
    asyncio.run(provider.release(lease))


@pytest.fixture
async def session(allocation: Allocation) -> AsyncIterator[SshSession]:
    async with await allocation.session() as opened:
        yield opened


@pytest.fixture
def folder(allocation: Allocation) -> Path:
    """A fresh folder on the allocation's disk."""
    made = allocation.root / f"run-{uuid.uuid4().hex[:8]}"
    made.mkdir(mode=0o700)
    return made
