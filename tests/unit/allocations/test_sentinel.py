"""The sentinel with a real ledger and a fake provider: what it terminates, and when it starts and exits."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.allocations import cleanup, overview, sentinel
from engine.allocations.sentinel import Sentinel
from engine.errors import ProviderError, StoreError
from engine.plan import ProviderRequest, preset
from engine.providers.protocol import EmptyProof, ExistingAllocation, Lease, LedgerEntry, Reconciliation, Scope
from engine.runner import spawn
from engine.runner.end_allocation import end_allocation
from engine.runner.leases import with_end, with_intent, with_keep, with_lease
from engine.store.home import database_path
from engine.store.ledger import AllocationFields
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.wire import utc_now

RUN = "0123456789ab"


def a_lease(name: str) -> Lease:
    return Lease(
        allocation_id=f"pod-{name}", provider="runpod", name=name, run_id=RUN, gpu_model=None, price_per_hour=1.0,
        acquired_at=utc_now(), root="r", python="p", site_paths=(), machine={},
    )  # fmt: skip


class Pods:
    """Pods by name; releasing one called `slow` never returns."""

    name = "runpod"

    def __init__(self) -> None:
        self.existing: set[str] = set()

    async def reconcile(self, ledger: list[LedgerEntry]) -> Reconciliation:
        ours = [
            ExistingAllocation(name=e.name, observation="alive", lease=a_lease(e.name))
            for e in ledger
            if e.name in self.existing
        ]
        known = {entry.name for entry in ledger}
        foreign = [ExistingAllocation(name=name, observation="alive") for name in sorted(self.existing - known)]
        return Reconciliation(ours=tuple(ours), foreign=tuple(foreign))

    async def release(self, lease: Lease) -> None:
        if lease.name == "slow":
            await asyncio.sleep(3600)
        self.existing.discard(lease.name)

    async def prove_empty(self, scope: Scope) -> EmptyProof:
        count = len(self.existing & set(scope.names))
        return EmptyProof(scope=scope.names, listings=2, count=count, others=0, at=utc_now(), statement="counted")

    async def close(self) -> None:
        pass


@pytest.fixture
def pods(monkeypatch: pytest.MonkeyPatch) -> Pods:
    fake = Pods()
    monkeypatch.setattr(sentinel, "provider_for", lambda *_: fake)
    monkeypatch.setattr(sentinel, "TICK_SECONDS", 0.02)
    return fake


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    plan = preset("demo")
    with Writer(tmp_path) as store:
        store.create_run(RUN, plan.__class__(**{**_fields(plan), "provider": ProviderRequest(name="runpod")}))
        yield store


def _fields(plan: Any) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__struct_fields__}


async def _sentinel_reaches(home: Path, until: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Run a sentinel until the condition holds; False when it does not hold in time."""
    watching = asyncio.create_task(Sentinel(home).watch())
    end = time.monotonic() + seconds
    while not (reached := until()) and time.monotonic() < end:  # noqa: ASYNC110  the condition reads the store
        await asyncio.sleep(0.02)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    return reached


def _states(home: Path) -> dict[str, str]:
    with Reader(home) as reader:
        return {one.name: one.ledger_state for one in reader.allocations()}


async def test_a_request_of_a_dead_runner_is_terminated_at_its_deadline(
    tmp_path: Path, pods: Pods, writer: Writer
) -> None:
    writer.allocation_intent("a", "runpod", "late", RUN, **with_intent(-1.0))
    writer.allocation_intent("b", "runpod", "early", RUN, **with_intent(3600.0))
    pods.existing = {"late", "early"}
    assert await _sentinel_reaches(tmp_path, lambda: _states(tmp_path)["late"] == "gone")
    assert pods.existing == {"early"}


async def test_the_pod_of_an_ended_run_is_terminated_before_its_deadline(
    tmp_path: Path, pods: Pods, writer: Writer
) -> None:
    writer.allocation_intent("a", "runpod", "left", RUN)
    writer.allocation_state("a", "created", **with_lease(a_lease("left")))
    writer.allocation_state("a", "ready")
    writer.finish(RUN, {}, [], state="failed")
    pods.existing = {"left"}
    assert await _sentinel_reaches(tmp_path, lambda: not pods.existing)


async def test_a_slow_release_and_an_unreadable_entry_do_not_delay_the_others(
    tmp_path: Path, pods: Pods, writer: Writer
) -> None:
    for name in ("overdue", "slow", "odd"):  # the newest is checked first
        writer.allocation_intent(name, "runpod", name, RUN, **with_end(-1.0))
    with sqlite3.connect(database_path(tmp_path)) as database:
        database.execute("""UPDATE allocations SET detail = '{"lease": {"root": 7}}' WHERE id = 'odd'""")
    pods.existing = {"overdue", "slow", "odd"}
    assert await _sentinel_reaches(tmp_path, lambda: "overdue" not in pods.existing)


async def test_a_kept_pod_is_left_alone_until_its_time_is_over(tmp_path: Path, pods: Pods, writer: Writer) -> None:
    for name in ("over", "kept"):
        writer.allocation_intent(name, "runpod", name, RUN)
        writer.allocation_state(name, "created", **with_lease(a_lease(name)))
        with Reader(tmp_path) as reader:
            entry = reader.allocation(name)
        assert entry is not None
        writer.allocation_state(name, "kept", **with_keep(entry, -1 if name == "over" else 10))
    pods.existing = {"over", "kept"}
    assert await _sentinel_reaches(tmp_path, lambda: "over" not in pods.existing)
    assert pods.existing == {"kept"}


def test_an_entry_added_after_the_last_check_is_still_watched(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = []

    async def watch(_: Sentinel) -> None:
        watched.append(len(_states(tmp_path)))
        if len(watched) == 1:  # about to exit: a run adds an entry, sees the lock held and starts no other sentinel
            writer.allocation_intent("a", "runpod", "new", RUN)
            spawn.ensure_sentinel(tmp_path)
        else:
            writer.allocation_state("a", "gone")

    (tmp_path / "allocations").mkdir()
    monkeypatch.setattr(Sentinel, "watch", watch)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another sentinel was started"))
    monkeypatch.setattr(sys, "argv", ["sentinel", "--home", str(tmp_path)])
    assert sentinel.main() == 0
    assert watched == [0, 1]


def test_a_sentinel_is_started_where_none_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    spawn.ensure_sentinel(tmp_path)
    assert len(started) == 1
    fd = os.open(tmp_path / spawn.FOLDER / spawn.LOCK, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    spawn.ensure_sentinel(tmp_path)
    os.close(fd)
    assert len(started) == 1


def test_a_cleanup_skips_an_allocation_whose_run_was_resumed_meanwhile(
    tmp_path: Path, pods: Pods, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.allocation_intent("second", "runpod", "second", RUN)
    writer.allocation_intent("first", "runpod", "first", None)
    pods.existing = {"first", "second"}
    release = pods.release

    async def resumed(lease: Lease) -> None:
        await release(lease)
        writer.claim_runner(RUN, os.getppid())

    monkeypatch.setattr(pods, "release", resumed)
    monkeypatch.setattr(cleanup, "provider_for", lambda *_: pods)
    ended = cleanup.clean_up(tmp_path, ["first", "second"])
    assert [one.outcome for one in ended] == ["gone", "unknown"]
    assert pods.existing == {"second"}


async def test_a_leaked_entry_without_an_answer_is_reported_as_create_unanswered(
    tmp_path: Path, pods: Pods, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unanswered(scope: Scope) -> EmptyProof:
        return EmptyProof(
            scope=scope.names, listings=2, count=0, others=0, at=utc_now(), statement="counted", unanswered=scope.names
        )

    writer.allocation_intent("a", "runpod", "requested", RUN)
    writer.allocation_state("a", "leaked", "api_unavailable")
    monkeypatch.setattr(pods, "prove_empty", unanswered)
    with Reader(tmp_path) as reader:
        (entry,) = reader.allocations()
        with pytest.raises(ProviderError) as raised:
            await end_allocation(writer, reader, pods, entry)  # type: ignore[arg-type]  # the fake has every method that is called
        assert raised.value.code == "create_unanswered"
        assert reader.allocations()[0].reason.startswith("create_unanswered")


def test_keeping_a_pod_longer_does_not_take_it_from_a_run_that_uses_it(
    tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.allocation_intent("a", "runpod", "kept", None)
    writer.allocation_state("a", "created")
    writer.allocation_state("a", "kept")

    def meanwhile(entry: AllocationView, minutes: int) -> AllocationFields:
        writer.take_up(entry.id, RUN)
        return with_keep(entry, minutes)

    monkeypatch.setattr(cleanup, "with_keep", meanwhile)
    with pytest.raises(StoreError):
        cleanup.keep(tmp_path, "a", 10)
    assert _states(tmp_path) == {"kept": "ready"}


def test_querying_the_overview_restarts_a_dead_sentinel(
    tmp_path: Path, pods: Pods, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    monkeypatch.setattr(overview, "provider_for", lambda *_: pods)
    assert overview.overview(tmp_path).troubles == ()
    assert started == []
    writer.allocation_intent("a", "runpod", "requested", RUN)
    overview.overview(tmp_path, query=False)
    assert started == []
    overview.overview(tmp_path)
    assert len(started) == 1


def test_a_pod_that_is_listed_again_is_reopened_as_leaked(
    tmp_path: Path, pods: Pods, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.allocation_intent("again", "runpod", "again", None)
    for module in (cleanup, overview):
        monkeypatch.setattr(module, "provider_for", lambda *_: pods)
        monkeypatch.setattr(module, "watch_on", lambda *_: None)
    assert [one.outcome for one in cleanup.clean_up(tmp_path, ["again"])] == ["gone"]
    pods.existing = {"again"}
    (listed,) = overview.overview(tmp_path).allocations
    assert (listed.ours, listed.name, listed.state) == (True, "again", "leaked")
    assert [one.outcome for one in cleanup.clean_up(tmp_path)] == ["gone"]
    assert pods.existing == set()
