"""The sentinel with a real ledger and a fake provider: what it terminates, and when it starts and exits."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.allocations import cleanup, overview, returned, sentinel
from engine.allocations.sentinel import Sentinel
from engine.errors import ProviderError, StoreError
from engine.plan import ProviderRequest, preset
from engine.providers.protocol import EmptyProof, ExistingAllocation, Lease, LedgerEntry, Reconciliation, Scope
from engine.runner import abandon, allocation, spawn
from engine.runner.end_allocation import end_allocation
from engine.runner.final_row import settle_runs, store_row
from engine.runner.leases import with_end, with_intent, with_keep, with_lease
from engine.store.deadline import Deadline, Recheck
from engine.store.home import database_path
from engine.store.ledger import AllocationFields
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.system.clock import BootTime
from engine.wire import ALLOCATION_GONE, utc_now
from glasshouse_tui.commands.base import Session, note_unused_allocations

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
        self.ages: dict[str, float] = {}

    async def reconcile(self, ledger: list[LedgerEntry]) -> Reconciliation:
        ours = [
            ExistingAllocation(
                name=e.name,
                observation="alive",
                lease=a_lease(e.name),
                allocation_id=f"pod-{e.name}",
                price_per_hour=1.0,
                since="2026-11-01T00:00:00.000Z",
                age_sec=self.ages.get(e.name),
            )
            for e in ledger
            if e.name in self.existing
        ]
        known = {entry.name for entry in ledger}
        foreign = [ExistingAllocation(name=name, observation="alive") for name in sorted(self.existing - known)]
        return Reconciliation(ours=tuple(ours), foreign=tuple(foreign))

    async def release(self, lease: Lease) -> bool:
        if lease.name == "slow":
            await asyncio.sleep(3600)
        self.existing.discard(lease.name)
        return True

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


async def test_a_sentinel_whose_home_is_gone_releases_what_it_knew_and_leaves_a_word(
    tmp_path: Path, pods: Pods, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path.with_name(f"{tmp_path.name}-state")
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setattr(abandon, "provider_for", lambda *_: pods)
    writer.allocation_intent("a", "runpod", "kept", RUN)
    writer.allocation_state("a", "created", **with_lease(a_lease("kept")))
    writer.allocation_state("a", "kept", keep_until=Deadline.after(3600))
    pods.existing = {"kept"}
    watcher = Sentinel(tmp_path)
    watching = asyncio.create_task(watcher.watch())
    while not watcher._known:  # noqa: ASYNC110  nothing says that it has looked
        await asyncio.sleep(0.01)
    assert pods.existing == {"kept"}
    shutil.rmtree(tmp_path)
    await asyncio.wait_for(watching, 60)
    assert pods.existing == set()
    words = state / "glasshouse" / "last-words.log"
    assert "released kept (pod-kept)" in words.read_text()
    assert words.stat().st_mode & 0o777 == 0o600
    assert tmp_path.name not in os.listdir(tmp_path.parent), "the home was created again"  # noqa: PTH208


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

    async def resumed(lease: Lease) -> bool:
        await release(lease)
        writer.claim_runner(RUN, os.getppid())
        return True

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

    monkeypatch.setattr(allocation, "with_keep", meanwhile)
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


async def test_the_sentinel_is_restarted_for_what_is_gone_and_still_looked_for(
    tmp_path: Path, pods: Pods, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    monkeypatch.setattr(overview, "provider_for", lambda *_: pods)
    writer.allocation_intent("a", "runpod", "a", RUN)
    writer.allocation_state("a", "created", **with_lease(a_lease("a")))
    with Reader(tmp_path) as reader:
        entry = reader.allocation("a")
        assert entry is not None
        await end_allocation(writer, reader, pods, entry)  # type: ignore[arg-type]
        assert [one.id for one in reader.looked_for()] == ["a"]
    await asyncio.to_thread(overview.overview, tmp_path)
    assert len(started) == 1
    note_unused_allocations(Session(chosen_home=str(tmp_path)))
    assert len(started) == 2


async def test_a_kept_pod_that_returns_costs_its_run_no_more(tmp_path: Path, pods: Pods, writer: Writer) -> None:
    writer.allocation_intent("a", "runpod", "a", RUN)
    lease = msgspec.structs.replace(a_lease("a"), price_per_hour=3600.0)
    writer.allocation_state("a", "created", **with_lease(lease))
    writer.transition(RUN, "cleanup", "kept", "for 50 min")
    with Reader(tmp_path) as reader:
        store_row(writer, reader, RUN, None, state="failed", reason="", cost_usd=0.25)
        entry = reader.allocation("a")
        assert entry is not None
        proof = await end_allocation(writer, reader, pods, entry)  # type: ignore[arg-type]
        settle_runs(tmp_path, writer, reader, entry, proof)
        settle_runs(tmp_path, writer, reader, entry, proof, again=True)
        row = reader.run(RUN).row
    assert row is not None
    assert row["costUsd"] == 0.25


async def test_a_pod_that_returns_unseen_is_found_by_the_sentinel_and_its_row_is_signed_again(
    tmp_path: Path, pods: Pods, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("[runpod.limits]\nrecheck = 0.05\n")
    monkeypatch.setattr(returned, "watch_on", lambda *_: None)
    writer.allocation_intent("a", "runpod", "again", RUN)
    lease = msgspec.structs.replace(a_lease("again"), price_per_hour=3600.0)
    writer.allocation_state("a", "created", **with_lease(lease))
    with Reader(tmp_path) as reader:
        entry = reader.allocation("a")
        assert entry is not None
        await end_allocation(writer, reader, pods, entry)  # type: ignore[arg-type]
        writer.transition(RUN, "cleanup", "gone")
        store_row(writer, reader, RUN, None, state="failed", reason="", cost_usd=0.0)
        first = reader.run(RUN).row
        assert first is not None
        pods.existing = {"again"}  # and billed all the time
        assert await _sentinel_reaches(tmp_path, lambda: not pods.existing)
        assert await _sentinel_reaches(tmp_path, lambda: _states(tmp_path) == {"again": "gone"})
        assert await _sentinel_reaches(tmp_path, lambda: reader.run(RUN).summary.cleanup == "gone")
        counts = [line.body["count"] for line in reader.log(RUN) if line.event == ALLOCATION_GONE]
        row, cleanup_states = (
            reader.run(RUN).row,
            [move.state for move in reader.run(RUN).transitions if move.subject == "cleanup"],
        )
    assert row is not None
    assert counts == [1, 0]
    assert cleanup_states == ["gone", "leaked", "gone"]
    assert row["costUsd"] > first["costUsd"]
    assert row["finishedAt"] == first["finishedAt"]


@pytest.mark.parametrize(("confirmed", "hours"), [(True, 1), (False, 24)])
def test_what_is_gone_is_looked_for_at_growing_intervals(
    monkeypatch: pytest.MonkeyPatch, confirmed: bool, hours: int
) -> None:
    now = [BootTime("boot", 1000.0)]
    monkeypatch.setattr(BootTime, "now", lambda: now[0])
    record, looks = Recheck.begin(confirmed=confirmed), [0.0]
    while not record.over:
        now[0] = BootTime("boot", now[0].at + 1.0)
        if record.due():
            record = record.after_look()
            looks.append(record.looked)
    gaps = [later - earlier for earlier, later in itertools.pairwise(looks)]
    assert gaps == sorted(gaps)
    assert looks[1] == 15.0
    assert hours * 3600 <= looks[-1] < 2 * hours * 3600
    assert not record.due()
    again = Recheck.begin(confirmed=confirmed)
    now[0] = BootTime("another-boot", 5.0)
    assert again.due(), "after a restart of this machine nobody knows how long ago it ended"
    assert not again.after_look().due()


async def test_after_a_restart_the_age_that_the_provider_states_decides(
    tmp_path: Path, pods: Pods, writer: Writer
) -> None:
    earlier = Deadline(utc="2026-11-01T00:00:00.000Z", boot="an-earlier-boot", at=1.0, life=3600.0)
    for name in ("young", "old"):
        writer.allocation_intent(name, "runpod", name, None)
        fields = with_lease(a_lease(name))
        fields["deadline"] = earlier
        writer.allocation_state(name, "created", **fields)
        writer.allocation_state(name, "kept", keep_until=earlier)
        pods.ages[name] = 60.0 if name == "young" else 7200.0
    pods.existing = {"young", "old"}
    assert await _sentinel_reaches(tmp_path, lambda: pods.existing == {"young"})


async def test_what_no_clock_can_tell_is_ended_if_no_run_uses_it(tmp_path: Path, pods: Pods, writer: Writer) -> None:
    earlier = Deadline(utc="2099-11-01T00:00:00.000Z", boot="an-earlier-boot", at=1.0, life=3600.0)
    writer.allocation_intent("silent", "runpod", "silent", None)
    writer.allocation_state("silent", "created", **with_lease(a_lease("silent")))
    writer.allocation_state("silent", "kept", keep_until=earlier)
    pods.existing = {"silent"}
    assert await _sentinel_reaches(tmp_path, lambda: not pods.existing)


def test_what_the_listing_knows_of_an_unanswered_creation_is_shown_and_kept(
    tmp_path: Path, pods: Pods, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "provider_for", lambda *_: pods)
    monkeypatch.setattr(overview, "watch_on", lambda *_: None)
    writer.allocation_intent("a", "runpod", "requested", RUN)
    pods.existing = {"requested"}
    (listed,) = overview.overview(tmp_path).allocations
    known = ("pod-requested", 1.0, "2026-11-01T00:00:00.000Z", "alive")
    assert (listed.allocation_id, listed.price_per_hour, listed.listed_since, listed.observation) == known
    assert listed.spent is not None
    (entry,) = overview.overview(tmp_path, query=False).allocations
    assert (entry.allocation_id, entry.price_per_hour) == known[:2]
    assert _states(tmp_path) == {"requested": "intent"}


def test_a_pod_that_is_listed_again_is_reopened_as_leaked(
    tmp_path: Path, pods: Pods, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.allocation_intent("again", "runpod", "again", None)
    for module in (cleanup, overview):
        monkeypatch.setattr(module, "provider_for", lambda *_: pods)
    for module in (cleanup, overview, returned):
        monkeypatch.setattr(module, "watch_on", lambda *_: None)
    assert [one.outcome for one in cleanup.clean_up(tmp_path, ["again"])] == ["gone"]
    pods.existing = {"again"}
    (listed,) = overview.overview(tmp_path).allocations
    assert (listed.ours, listed.name, listed.state) == (True, "again", "leaked")
    assert [one.outcome for one in cleanup.clean_up(tmp_path)] == ["gone"]
    assert pods.existing == set()
