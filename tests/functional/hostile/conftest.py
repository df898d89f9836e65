"""One allocation for all attacks of a module, and a separate run for each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from engine.providers.local.provider import LocalProvider
from engine.providers.protocol import Lease, Spec, allocation_name
from engine.remote.reconnect import Reconnecting
from engine.remote.session import SshSession
from engine.runner.environment_local import EnvironmentReference
from engine.runner.start import start_run
from tests.functional.hostile.pod import Operator
from tests.functional.runs.support import short_plan


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture(scope="module")
def reference(home: Path, tmp_path_factory: pytest.TempPathFactory) -> EnvironmentReference:
    """The reference value of an environment with one small package, so that measuring it is fast."""
    site = tmp_path_factory.mktemp("site")
    (site / "package.py").write_text("installed = True\n")
    reference = EnvironmentReference(home, (str(site),))
    reference.result()
    return reference


@pytest.fixture(scope="module")
def provider(home: Path) -> LocalProvider:
    return LocalProvider(home)


@pytest.fixture(scope="module")
def lease(provider: LocalProvider) -> Iterator[Lease]:
    acquired = asyncio.run(provider.acquire(Spec(name=allocation_name("test", "run")), "run"))
    yield asyncio.run(provider.wait_ready(acquired))
    asyncio.run(provider.release(acquired))


@pytest.fixture
async def operator(
    home: Path, provider: LocalProvider, lease: Lease, reference: EnvironmentReference, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    monkeypatch.setattr("engine.runner.start.spawn_runner", lambda home, run_id: os.getpid())
    run_id = await asyncio.to_thread(
        start_run, home, short_plan("protected", steps=3, evaluation=None, challenge="a buyer's text")
    )

    async def opener() -> SshSession:
        return await provider.open_session(await provider.wait_ready(lease))

    async with Reconnecting(opener) as link:
        yield await asyncio.to_thread(Operator, home, run_id, lease, link, reference)
