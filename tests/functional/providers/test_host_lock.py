"""The lock on a host: one run at a time from any operator, and free again however its holder ends."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from engine.errors import RemoteError
from engine.remote import host_lock
from engine.remote.endpoint import Endpoint, LinkLimits
from engine.remote.host_lock import Busy, Held, acquire_lock, free_lock, renewed
from engine.remote.session import SshSession
from engine.remote.transfer import upload
from engine.system.processes import live_process
from tests.functional.providers.openssh import USER, Sshd, openssh

PYTHON = sys.executable
PATIENCE = 60.0


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with openssh(tmp_path_factory.mktemp("sshd")) as server:
        yield server


async def _open(sshd: Sshd) -> SshSession:
    endpoint = Endpoint(host="127.0.0.1", port=sshd.port, user=USER, client_key=sshd.client_key, host_key=sshd.line)
    return await SshSession.connect(endpoint, LinkLimits(connect=30, login=30, command=60))


@pytest.fixture
async def session(sshd: Sshd) -> AsyncIterator[SshSession]:
    async with await _open(sshd) as opened:
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "root")
    record = tmp_path / "root" / ".lock"
    if record.exists() and record.read_bytes():
        _end(_holder(str(tmp_path / "root")))


def _holder(root: str) -> int:
    return int(json.loads((Path(root) / ".lock").read_bytes())["pid"])


def _end(pid: int) -> None:
    """Kill a process, as when it crashes; returns once it has ended."""
    try:
        descriptor = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    select.select([descriptor], [], [], PATIENCE)
    os.close(descriptor)


def _ended(pid: int, seconds: float = PATIENCE) -> bool:
    """Wait for a process to end by itself; False if it does not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


@pytest.fixture
def shared(root: str) -> Path:
    """A root that everybody may write to, like /tmp."""
    Path(root).mkdir()
    Path(root).chmod(0o1777)
    return Path(root)


async def test_a_root_that_others_may_write_to_is_refused(session: SshSession, root: str, shared: Path) -> None:
    with pytest.raises(RemoteError, match="Other users") as caught:
        await acquire_lock(session, root, "run-1", PYTHON)
    assert caught.value.code == "host_lock_failed"
    await asyncio.to_thread(shared.chmod, 0o755)
    assert isinstance(await acquire_lock(session, root, "run-1", PYTHON), Held)


async def test_a_second_run_learns_which_run_has_the_host_and_gets_it_afterwards(
    sshd: Sshd, session: SshSession, root: str
) -> None:
    held = await acquire_lock(session, root, "first", PYTHON)
    assert isinstance(held, Held)
    async with await _open(sshd) as other:  # as another operator would
        busy = await acquire_lock(other, root, "second", PYTHON)
        assert busy == Busy(by="first", since=held.since)
        assert busy.reason == f"run first has this host since {held.since}"
        await free_lock(other, root, "second", PYTHON)  # not its own
        assert await acquire_lock(other, root, "second", PYTHON) == busy
        await free_lock(session, root, "first", PYTHON)
        assert isinstance(await acquire_lock(other, root, "second", PYTHON), Held)


async def test_of_several_concurrent_runs_one_gets_the_host(session: SshSession, root: str) -> None:
    outcomes = await asyncio.gather(*(acquire_lock(session, root, f"run{number}", PYTHON) for number in range(6)))
    assert [type(one) for one in outcomes].count(Held) == 1


async def test_a_resumed_run_still_holds_its_lock_after_a_lost_link(sshd: Sshd, session: SshSession, root: str) -> None:
    first = await acquire_lock(session, root, "run", PYTHON)
    sshd.cut()
    async with await _open(sshd) as again:
        assert await acquire_lock(again, root, "run", PYTHON) == first


async def test_a_holder_that_dies_frees_the_host(session: SshSession, root: str) -> None:
    assert isinstance(await acquire_lock(session, root, "first", PYTHON), Held)
    _end(_holder(root))
    assert isinstance(await acquire_lock(session, root, "second", PYTHON), Held)


async def test_a_runner_that_never_returns_loses_the_host(session: SshSession, root: str) -> None:
    assert isinstance(await acquire_lock(session, root, "run", PYTHON, lease=0.1), Held)
    assert await asyncio.to_thread(_ended, _holder(root))


async def test_a_lock_that_is_renewed_outlasts_its_lease(
    session: SshSession, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(await acquire_lock(session, root, "run", PYTHON, lease=8.0), Held)
    monkeypatch.setattr(host_lock, "RENEW_SECONDS", 0.1)
    async with renewed(session, root, "run", PYTHON):
        assert not await asyncio.to_thread(_ended, _holder(root), 12.0)


async def test_the_host_is_held_as_long_as_the_runs_supervisor_lives(session: SshSession, root: str) -> None:
    worker = await asyncio.to_thread(subprocess.Popen, ["sleep", "60"])
    process = live_process(worker.pid)
    assert process is not None
    run = Path(root) / "run"
    run.mkdir(parents=True)
    (run / "launched.json").write_text(json.dumps({"pid": process.pid, "start": process.start, "bundle": "0" * 64}))
    assert isinstance(await acquire_lock(session, root, "run", PYTHON, lease=0.1), Held)
    holder = _holder(root)
    assert not await asyncio.to_thread(_ended, holder, 1.5), "it ended with its lease"
    _end(holder)
    busy = await acquire_lock(session, root, "other", PYTHON)
    assert busy == Busy(by="run", since=""), "a supervisor without a holder was not detected"
    assert isinstance(await acquire_lock(session, root, "run", PYTHON, lease=0.1), Held)
    worker.kill()
    worker.wait()
    assert await asyncio.to_thread(_ended, _holder(root))
    assert isinstance(await acquire_lock(session, root, "other", PYTHON), Held)


async def test_a_root_that_is_not_a_folder_is_an_error(session: SshSession, tmp_path: Path) -> None:
    root = f"{tmp_path}/file"
    await upload(session, b"", root)
    with pytest.raises(RemoteError) as caught:
        await acquire_lock(session, root, "run", PYTHON)
    assert caught.value.code == "host_lock_failed"
