"""A pod's path through a run, on the local allocation: staging, measured launch, tail, killed servers, release."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.providers.local.files import read_ready
from engine.providers.local.provider import LocalProvider
from engine.providers.protocol import Lease, Scope, Spec, allocation_name
from engine.remote.bundle import build_bundle, bundle_digest
from engine.remote.endpoint import LinkLimits
from engine.remote.launch import Launched, alive, launch
from engine.remote.reconnect import Reconnecting
from engine.remote.session import SshSession
from engine.remote.tail import Tail
from engine.remote.transfer import put_inbox, upload
from engine.system.processes import is_alive
from engine.wire import GENESIS, LOG, RUN_CLOSED, ChainReader, Event

LIMITS = LinkLimits(keepalive_interval=1.5, retry_first=0.05, retry_most=0.3, give_up=60)
EVENTS = 150
WORKER = f"""
import sys, time
from pathlib import Path

words = sys.argv[1:]
sys.path += [words[i + 1] for i, word in enumerate(words) if word == "--site"]
from engine.wire import LOG, RUN_CLOSED, ChainWriter, to_line

folder = Path(words[words.index("--dir") + 1])
writer = ChainWriter("run")
with (folder / "events.jsonl").open("ab", buffering=0) as log:
    for number in range({EVENTS}):
        line = to_line(writer.append(LOG, {{"number": number, "text": "x" * (number * 40)}}))
        log.write(line[: len(line) // 2])
        time.sleep(0.01)
        log.write(line[len(line) // 2 :])
    until = time.monotonic() + 60
    while not (folder / "inbox" / "end.json").exists() and time.monotonic() < until:
        time.sleep(0.01)
    log.write(to_line(writer.append(RUN_CLOSED, {{}})))
time.sleep(60)
"""


def _worker_bundle() -> bytes:
    """The shipped bundle, with its entry point replaced by a worker that only writes events."""
    archive = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(build_bundle())) as real, zipfile.ZipFile(archive, "w") as bundle:
        for name in real.namelist():
            bundle.writestr(zipfile.ZipInfo(name), WORKER if name == "__main__.py" else real.read(name))
    return archive.getvalue()


@dataclass
class LocalRun:
    """A run on a local allocation."""

    provider: LocalProvider
    lease: Lease
    sessions: list[SshSession] = field(default_factory=list)

    @property
    def run_dir(self) -> str:
        return f"{self.lease.root}/run"

    async def open(self) -> SshSession:
        """Open a session, as the runner's link does for every reconnection."""
        self.lease = await self.provider.wait_ready(self.lease)
        self.sessions.append(await self.provider.open_session(self.lease))
        return self.sessions[-1]

    async def stage_and_launch(self, link: Reconnecting) -> Launched:
        bundle = _worker_bundle()
        for folder in (self.run_dir, f"{self.run_dir}/inbox"):
            await link.call(lambda session, folder=folder: session.mkdir(folder))  # type: ignore[misc]
        await link.call(lambda session: upload(session, bundle, f"{self.run_dir}/bundle.pyz"))
        return await link.call(
            lambda session: launch(
                session,
                python=self.lease.python,
                bundle_path=f"{self.run_dir}/bundle.pyz",
                sha256=bundle_digest(bundle),
                run_dir=self.run_dir,
                site_paths=self.lease.site_paths,
            )
        )

    def signal_server(self, number: signal.Signals) -> int:
        ready = read_ready(Path(self.lease.root).parent)
        assert ready is not None
        os.kill(ready.pid, number)
        while number == signal.SIGKILL and is_alive(ready.pid, ready.start):
            time.sleep(0.001)
        return ready.pid


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[LocalRun]:
    provider = LocalProvider(tmp_path, LIMITS)
    lease = await provider.acquire(Spec(name=allocation_name("test", "run")), "run")
    run = LocalRun(provider, lease)
    yield run
    for session in run.sessions:
        await session.close()
    await provider.release(lease)


async def _follow(tail: Tail, until: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(120):
        while not until(events):
            polled = await tail.poll()
            events += [tailed.event for tailed in polled]
            if not polled:
                await asyncio.sleep(0.005)
    return events


async def test_servers_killed_twice_in_mid_run_lose_no_event(run: LocalRun) -> None:
    link_states: list[bool] = []
    async with Reconnecting(run.open, LIMITS, on_link=lambda up, _: link_states.append(up)) as link:
        launched = await run.stage_and_launch(link)
        tail = Tail(link, f"{run.run_dir}/events.jsonl", 0, ChainReader("run"))
        received = await _follow(tail, lambda events: len(events) >= 20)
        run.signal_server(signal.SIGKILL)
        received += await _follow(tail, lambda events: len(events) >= 20)
        run.signal_server(signal.SIGKILL)
        received += await _follow(tail, lambda events: len(received) + len(events) >= EVENTS)
        await link.call(lambda session: put_inbox(session, run.run_dir, "end.json", b"{}"))
        received += await _follow(tail, bool)
        assert await link.call(lambda session: alive(session, launched.pid, launched.start)) is True
    assert [event.event for event in received] == [LOG] * EVENTS + [RUN_CLOSED]
    assert [event.body.get("number") for event in received[:-1]] == list(range(EVENTS))
    assert link_states == [True, False, True, False, True]
    assert len(run.sessions) == 3


async def test_a_frozen_server_that_is_killed_loses_no_event(run: LocalRun) -> None:
    async with Reconnecting(run.open, LIMITS) as link:
        await run.stage_and_launch(link)
        tail = Tail(link, f"{run.run_dir}/events.jsonl", 0, ChainReader("run"))
        received = await _follow(tail, lambda events: len(events) >= 20)
        run.signal_server(signal.SIGSTOP)
        waiting = asyncio.create_task(_follow(tail, lambda events: len(received) + len(events) >= EVENTS))
        await asyncio.sleep(1.0)
        run.signal_server(signal.SIGKILL)
        received += await waiting
    assert [event.seq for event in received] == list(range(EVENTS))


async def test_a_new_runner_continues_from_the_stored_lease_offset_and_head(run: LocalRun, tmp_path: Path) -> None:
    async with Reconnecting(run.open, LIMITS) as link:
        launched = await run.stage_and_launch(link)
        tail = Tail(link, f"{run.run_dir}/events.jsonl", 0, ChainReader("run"))
        received = await _follow(tail, lambda events: len(events) >= 30)
        offset = tail.offset
    run.signal_server(signal.SIGKILL)

    second = LocalRun(LocalProvider(tmp_path, LIMITS), run.lease)
    async with Reconnecting(second.open, LIMITS) as link:
        assert await second.stage_and_launch(link) == launched
        reader = ChainReader("run", head=received[-1].hash if received else GENESIS, next_seq=len(received))
        rest = await _follow(
            Tail(link, f"{run.run_dir}/events.jsonl", offset, reader),
            lambda events: len(received) + len(events) >= EVENTS,
        )
    assert [event.seq for event in received + rest] == list(range(EVENTS))


async def test_release_terminates_the_supervisor_and_proves_the_allocation_gone(run: LocalRun) -> None:
    async with Reconnecting(run.open, LIMITS) as link:
        launched = await run.stage_and_launch(link)
        await _follow(Tail(link, f"{run.run_dir}/events.jsonl", 0, ChainReader("run")), bool)
    run.signal_server(signal.SIGKILL)
    await run.provider.release(run.lease)
    proof = await run.provider.prove_empty(Scope(names=(run.lease.name,), leases=(run.lease,)))
    assert (proof.count, proof.others) == (0, 0)
    assert not is_alive(launched.pid, launched.start)
    assert await run.provider.observe(run.lease) == "gone"
