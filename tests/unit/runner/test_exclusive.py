"""One run at a time on a machine: this home's lock, a supervisor without a runner, and another operator's run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.plan import Plan, preset
from engine.providers.settings import Settings
from engine.remote.launch import Launched
from engine.runner import exclusive
from engine.runner.exclusive import ExclusiveUse, lock_name
from engine.runner.folder import RunFolder
from engine.runner.staging import LAUNCHED
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.system.processes import start_ticks

MINE, OTHER = "0123456789ab", "ba9876543210"


class SharedHost:
    """A provider whose machine other homes use too."""

    name = "static"

    def __init__(self) -> None:
        self.holder: str | None = None
        self.claims = 0
        self.released = 0

    async def claim(self, _spec: object, _run_id: str) -> str | None:
        self.claims += 1
        return self.holder

    async def let_go(self, _spec: object, _run_id: str) -> None:
        self.released += 1


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with Writer(tmp_path) as made:
        for run_id in (MINE, OTHER):
            made.create_run(run_id, preset("demo"))
        yield made


def use(home: Path, writer: Writer, plan: Plan | None = None, provider: Any = None) -> ExclusiveUse:
    return ExclusiveUse(home, writer, Reader(home), provider, plan or preset("demo"), Settings(), MINE)


def on(name: str) -> Plan:
    plan = preset("demo")
    return msgspec.structs.replace(plan, provider=msgspec.structs.replace(plan.provider, name=name))


async def test_a_free_machine_is_taken_and_given_back(tmp_path: Path, writer: Writer) -> None:
    mine, lock = use(tmp_path, writer), lock_name(preset("demo"))
    assert await mine.take() is None
    assert Reader(tmp_path).is_claimed(lock)
    mine.release_lock()
    assert not Reader(tmp_path).is_claimed(lock)


async def test_a_machine_that_another_runner_of_this_home_has_is_waited_for(tmp_path: Path, writer: Writer) -> None:
    lock = lock_name(preset("demo"))
    writer.claim_allocation(lock, os.getppid())
    assert await use(tmp_path, writer).take() == "another run has this allocation"
    writer.release_allocation(lock, os.getppid())
    assert await use(tmp_path, writer).take() is None


@pytest.fixture
def supervisor() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


async def test_a_supervisor_whose_runner_died_keeps_the_machine_until_it_ends(
    tmp_path: Path, writer: Writer, supervisor: subprocess.Popen[bytes]
) -> None:
    folder = RunFolder(tmp_path, OTHER)
    folder.create()
    launched = Launched(pid=supervisor.pid, start=start_ticks(supervisor.pid) or 0, bundle="")
    folder.write(LAUNCHED, msgspec.json.encode(launched))
    reason = await use(tmp_path, writer).take()
    assert reason is not None
    assert OTHER in reason
    assert not Reader(tmp_path).is_claimed(lock_name(preset("demo")))  # others may find that out for themselves
    supervisor.kill()
    supervisor.wait()
    assert await use(tmp_path, writer).take() is None


async def test_a_host_that_another_operator_uses_is_asked_for_now_and_then(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SharedHost()
    host.holder = "somebody else trains here"
    mine = use(tmp_path, writer, on("static"), host)
    assert await mine.take() == await mine.take() == "somebody else trains here"
    assert host.claims == 1  # each query is a login where somebody is being timed
    monkeypatch.setattr(exclusive, "HOST_QUERY_SECONDS", 0.0)
    host.holder = None
    assert await mine.take() is None
    await mine.release_host()
    assert host.released == 1


async def test_a_rented_machine_is_nobody_elses(tmp_path: Path, writer: Writer) -> None:
    assert await use(tmp_path, writer, on("runpod")).take() is None
    assert not Reader(tmp_path).is_claimed(lock_name(on("runpod")))
