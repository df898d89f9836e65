"""The allocations ledger: states in their order, each with its reason; cost by age until it is settled."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from engine.errors import StoreError, UsageError
from engine.plan import Plan
from engine.store.deadline import Deadline, Listed
from engine.store.home import database_path
from engine.store.reader import Reader
from engine.store.views import LedgerState
from engine.store.writer import Writer
from engine.system.clock import BootTime

NAME = "glasshouse-ab12-run-a-77"


@pytest.fixture
def intended(writer: Writer, plan: Plan) -> Writer:
    writer.create_run("run-a", plan)
    writer.allocation_intent("alloc-1", "runpod", NAME, "run-a", gpu_model="NVIDIA H100", price_per_hour=3.6)
    return writer


def test_an_intent_is_listed_before_the_provider_has_answered(reader: Reader, intended: Writer) -> None:
    (allocation,) = reader.allocations()
    assert (allocation.id, allocation.name, allocation.provider_id) == ("alloc-1", NAME, None)
    assert (allocation.ledger_state, allocation.state) == ("intent", "active")
    assert (allocation.run_id, allocation.run_state, allocation.released_at) == ("run-a", "queued", None)


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (("created", "ready", "releasing", "gone"), "gone"),
        (("created", "ready", "kept", "releasing", "gone"), "gone"),
        (("created", "ready", "kept"), "kept"),
        (("created", "ready", "releasing"), "terminating"),
        (("created", "releasing", "leaked"), "leaked"),
        (("created", "releasing", "leaked", "releasing", "gone"), "gone"),
        (("created", "ready", "releasing", "not_ours"), "not_ours"),
        (("gone",), "gone"),
    ],
)
def test_permitted_sequences_of_states(
    home: Path, reader: Reader, intended: Writer, path: tuple[LedgerState, ...], shown: str
) -> None:
    for state in path:
        intended.allocation_state("alloc-1", state, f"because {state}")
    (allocation,) = reader.allocations()
    assert (allocation.state, allocation.ledger_state, allocation.reason) == (shown, path[-1], f"because {path[-1]}")
    assert (allocation.released_at is not None) == (shown in ("gone", "not_ours"))
    assert len(reader.allocations(open_only=True)) == (0 if shown in ("gone", "not_ours") else 1)
    with sqlite3.connect(database_path(home)) as connection:
        moves = connection.execute("SELECT state FROM allocation_moves ORDER BY id").fetchall()
    assert [state for (state,) in moves] == ["intent", *path]


@pytest.mark.parametrize(
    ("path", "impossible"),
    [
        (("created", "ready", "releasing", "gone"), "ready"),
        (("created", "releasing"), "ready"),
        ((), "ready"),
        (("created",), "intent"),
        (("created",), "exploded"),
        (("created", "not_ours"), "gone"),
    ],
)
def test_forbidden_state_changes_are_refused(
    reader: Reader, intended: Writer, path: tuple[LedgerState, ...], impossible: LedgerState
) -> None:
    for state in path:
        intended.allocation_state("alloc-1", state)
    before = reader.allocations()[0].ledger_state
    with pytest.raises(StoreError) as caught:
        intended.allocation_state("alloc-1", impossible)
    assert caught.value.code == "ledger_move"
    assert reader.allocations()[0].ledger_state == before


def test_fields_from_the_provider_are_added(reader: Reader, intended: Writer) -> None:
    intended.allocation_state("alloc-1", "created", provider_id="pod7", lease={"hostKey": "ssh-ed25519 AAAA"})
    intended.allocation_state("alloc-1", "ready", price_per_hour=3.7)
    intended.allocation_state("alloc-1", "ready", spent=1.25)
    (allocation,) = reader.allocations()
    assert (allocation.provider_id, allocation.price_per_hour, allocation.spent) == ("pod7", 3.7, 1.25)
    assert allocation.gpu_model == "NVIDIA H100"
    assert allocation.lease == {"hostKey": "ssh-ed25519 AAAA"}
    again = reader.allocation("alloc-1")
    assert again is not None
    assert msgspec.structs.replace(again, age_sec=None) == msgspec.structs.replace(allocation, age_sec=None)
    assert reader.allocation("none") is None


def test_deadlines_are_kept_by_the_boot_clock_and_the_first_one_stays(reader: Reader, intended: Writer) -> None:
    first, later = Deadline.after(60), Deadline.after(600)
    intended.allocation_state("alloc-1", "created", deadline=first, intended_until=later)
    intended.allocation_state("alloc-1", "ready", deadline=later)
    intended.allocation_state("alloc-1", "kept", keep_until=later)
    entry = reader.allocation("alloc-1")
    assert entry is not None
    assert (entry.deadline, entry.keep_until, entry.intended_until) == (first, later, later)


def test_taking_up_a_kept_allocation_clears_keep_until(reader: Reader, intended: Writer, plan: Plan) -> None:
    intended.create_run("run-b", plan)
    intended.allocation_state("alloc-1", "created")
    intended.allocation_state("alloc-1", "kept", keep_until=Deadline.after(60))
    intended.take_up("alloc-1", "run-b")
    entry = reader.allocation_of("run-b")
    assert entry is not None
    assert (entry.id, entry.run_id, entry.keep_until) == ("alloc-1", "run-b", None)
    before = reader.allocation_of("run-a")
    assert before is not None
    assert before.id == "alloc-1"


def test_a_runs_own_entry_comes_before_one_that_another_run_took_up(
    reader: Reader, intended: Writer, plan: Plan
) -> None:
    intended.create_run("run-b", plan)
    intended.allocation_state("alloc-1", "created")
    intended.allocation_state("alloc-1", "kept")
    intended.allocation_intent("alloc-2", "runpod", "another", "run-a")
    intended.take_up("alloc-1", "run-b")
    own, other = reader.allocation_of("run-a"), reader.allocation_of("run-b")
    assert own is not None
    assert other is not None
    assert (own.id, other.id) == ("alloc-2", "alloc-1")


@pytest.mark.parametrize("detail", ['{"deadline":"never"}', '{"deadline":{"at":1}}', '{"keepUntil":7,"lease":"none"}'])
def test_a_damaged_record_of_an_earlier_version_still_lists(
    home: Path, reader: Reader, intended: Writer, detail: str
) -> None:
    with sqlite3.connect(database_path(home)) as connection:
        connection.execute(
            "UPDATE allocations SET detail = ?, deadline = '2026-11-01T00:00:00.000Z', keep_until = deadline", (detail,)
        )
    (entry,) = reader.allocations()
    assert entry.lease is None
    assert entry.deadline is not None
    assert entry.deadline.left() is None  # a time in UTC alone decides nothing


@pytest.fixture(params=["2026-11-01T00:00:00.000Z", "1999-01-01T00:00:00.000Z", "2099-01-01T00:00:00.000Z"])
def shown(request: pytest.FixtureRequest) -> str:
    """The time that a wall clock shows, which may be anything."""
    return str(request.param)


def ago(seconds: float, boot: str | None = None) -> BootTime:
    now = BootTime.now()
    return BootTime(now.boot if boot is None else boot, now.at - seconds)


def test_open_allocation_is_priced_by_its_age_whatever_the_wall_clock_shows(home: Path, shown: str) -> None:
    with Writer(home, clock=lambda: shown, boot_clock=lambda: ago(7200)) as writer, Reader(home) as reader:
        writer.allocation_intent("alloc-1", "runpod", NAME, None, price_per_hour=3.0)
        writer.allocation_intent("alloc-2", "static", "my-box", None)
        spent = {allocation.id: allocation.spent for allocation in reader.allocations()}
    assert spent["alloc-1"] == pytest.approx(6.0, rel=0.01)
    assert spent["alloc-2"] is None


def test_released_allocation_costs_no_more(home: Path) -> None:
    shown = iter(("2026-11-02T00:00:00.000Z", "2026-10-31T00:30:00.000Z"))  # the wall clock was set back
    began = BootTime("some-boot", 1000.0)
    clock = iter((began, BootTime("some-boot", 2800.0)))
    with Writer(home, clock=lambda: next(shown), boot_clock=lambda: next(clock)) as writer, Reader(home) as reader:
        writer.allocation_intent("alloc-1", "runpod", NAME, None, price_per_hour=3.0)
        writer.allocation_state("alloc-1", "gone")
        assert reader.allocations()[0].spent == pytest.approx(1.5)


def test_after_a_restart_of_this_machine_only_the_provider_knows_an_age(home: Path) -> None:
    with Writer(home, boot_clock=lambda: ago(60, "an-earlier-boot")) as writer, Reader(home) as reader:
        writer.allocation_intent("alloc-1", "runpod", NAME, None, price_per_hour=3.0)
        assert (reader.allocations()[0].age_sec, reader.allocations()[0].spent) == (None, None)
        writer.allocation_known("alloc-1", listed=Listed.now(3600.0))
        assert reader.allocations()[0].spent == pytest.approx(3.0, rel=0.01)
        writer.allocation_known("alloc-1", listed=Listed(boot="an-earlier-boot", at=0.0, age=7200.0))
        assert reader.allocations()[0].spent is None


def test_a_run_that_took_up_a_kept_allocation_pays_from_then(home: Path, plan: Plan) -> None:
    clock = [ago(3600)]
    with Writer(home, boot_clock=lambda: clock[0]) as writer, Reader(home) as reader:
        for run in ("run-a", "run-b"):
            writer.create_run(run, plan)
        writer.allocation_intent("alloc-1", "runpod", NAME, "run-a")
        writer.allocation_state("alloc-1", "created")
        writer.allocation_state("alloc-1", "kept")
        clock[0] = ago(600)
        writer.take_up("alloc-1", "run-b")
        clock[0] = ago(0)
        writer.allocation_state("alloc-1", "gone")
        held = [reader.held_seconds("alloc-1", run) for run in ("run-a", "run-b")]
    assert held == [pytest.approx(3600, abs=5), pytest.approx(600, abs=5)]


def test_a_deadline_of_an_earlier_boot_is_unknown_until_the_provider_states_an_age(
    reader: Reader, intended: Writer
) -> None:
    earlier = Deadline(utc="2026-11-01T00:00:00.000Z", boot="an-earlier-boot", at=1.0, life=7200.0)
    intended.allocation_state("alloc-1", "created", deadline=earlier)
    entry = reader.allocation("alloc-1")
    assert entry is not None
    assert entry.deadline is not None
    assert (entry.deadline.left(), entry.deadline.is_over()) == (None, False)
    by_age = entry.deadline.by_age(7000.0)
    assert by_age is not None
    intended.allocation_known("alloc-1", deadline=by_age)
    entry = reader.allocation("alloc-1")
    assert entry is not None
    assert entry.deadline is not None
    assert entry.deadline.left() == pytest.approx(200.0, abs=5)


def test_a_name_cannot_be_used_twice(intended: Writer) -> None:
    with pytest.raises(StoreError) as caught:
        intended.allocation_intent("alloc-2", "runpod", NAME, "run-a")
    assert caught.value.code == "store_conflict"


def test_an_unknown_allocation_is_a_usage_error(intended: Writer) -> None:
    with pytest.raises(UsageError) as caught:
        intended.allocation_state("alloc-9", "gone")
    assert caught.value.code == "allocation_unknown"
