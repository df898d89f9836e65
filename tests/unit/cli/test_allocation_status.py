"""What is said of allocations: totals, alarms, prices; nothing unknown counts as nothing."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from engine.allocations.cleanup import Ended
from engine.allocations.overview import Listed, Overview, Trouble
from engine.errors import UsageError
from engine.providers.protocol import Quote, Spec
from glasshouse_tui.allocation_status import is_left_alone, totals
from glasshouse_tui.commands.allocations import alarm_text, listing_text, trouble_text
from glasshouse_tui.commands.cleanup import find, proof_text
from glasshouse_tui.commands.price_quote import quote_lines

AT = "2026-05-17T14:03:20.000Z"


def listed(**fields: Any) -> Listed:
    """One of ours, alive on RunPod, unless told."""
    made: dict[str, Any] = {
        "ours": True, "id": "a1b2c3d4e5f6", "provider": "runpod", "name": "glasshouse-1-2-3", "allocation_id": "pod7",
        "gpu_model": "NVIDIA L4", "state": "active", "observation": "alive", "price_per_hour": 0.4,
        "since": "2026-05-17T13:03:20.000Z", "spent": 0.4, "run_id": "b81e44d0a6c1", "run_state": "running",
        "keep_until": None, "deadline": None, "reason": "",
    }  # fmt: skip
    return Listed(**(made | fields))


def text(*allocations: Listed) -> str:
    return listing_text(Overview(at=AT, allocations=allocations, troubles=()), offline=False)


def test_totals_add_what_is_open_and_call_what_is_unknown_the_least() -> None:
    foreign = listed(ours=False, id=None, state="foreign", price_per_hour=9.0, spent=99.0)
    found = totals([listed(), listed(state="leaked"), listed(state="gone", spent=7.0), foreign])
    assert (found.open, found.leaked, found.foreign, found.price_per_hour, found.spent) == (2, 1, 1, 0.8, 0.8)
    assert found.complete
    assert not totals([listed(price_per_hour=None, spent=None)]).complete
    assert "at least $0.40/h" in text(listed(), listed(price_per_hour=None, spent=None))


def test_a_line_says_what_it_is_costs_and_does() -> None:
    shown = text(listed())
    for part in ("a1b2c3d4e5f6", "runpod", "L4", "$0.40/h", "1h 00m", "active", "b81e44d0 running", "1 open at"):
        assert part in shown, part


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"observation": "stopped"}, "active, stopped"),
        ({"observation": "unknown"}, "active, unknown"),
        ({"observation": "gone"}, "active, gone"),
        ({"state": "kept", "keep_until": AT}, "kept until 2026-05-17"),
        ({"gpu_model": None, "price_per_hour": None, "spent": None}, "unknown"),
    ],
)
def test_what_was_seen_and_what_nobody_knows_is_said(fields: dict[str, Any], said: str) -> None:
    assert said in text(listed(**fields))


def test_what_may_be_lost_is_loud_and_says_where_to_end_it() -> None:
    leaked = alarm_text(listed(state="leaked", reason="terminate failed"))
    for part in ("LEAKED", "$0.40 an hour", "terminate failed", "glasshouse cleanup a1b2c3d4e5f6", "pod7",
                 "https://console.runpod.io/pods"):  # fmt: skip
        assert part in leaked, part
    parked = alarm_text(listed(reason="create_unanswered: no answer came", allocation_id=None))
    assert "UNANSWERED" in parked
    assert alarm_text(listed()) == alarm_text(listed(state="gone")) == ""
    assert alarm_text(listed(ours=False, id=None, state="foreign")) == ""


def test_a_provider_that_was_not_asked_has_unknown_and_not_nothing() -> None:
    trouble = Trouble(provider="runpod", code="api_timeout", message="No answer came in time.", hint="Try again.")
    assert "unknown, not absent" in trouble_text(trouble)
    seen = Overview(at=AT, allocations=(), troubles=(trouble,))
    assert "Nothing is rented" not in listing_text(seen, offline=False)


def test_a_living_run_and_a_kept_allocation_are_nobody_s_worry() -> None:
    assert not is_left_alone(listed(), {"b81e44d0a6c1"})
    assert not is_left_alone(listed(state="kept"), set())
    assert not is_left_alone(listed(state="gone"), set())
    assert is_left_alone(listed(), {"another"})


def test_an_allocation_is_named_by_any_unique_beginning_and_a_foreign_one_never() -> None:
    one, other = listed(), listed(id="a1ffffffffff", allocation_id="pod9", name="glasshouse-1-2-4")
    foreign = listed(ours=False, id=None, state="foreign", allocation_id="theirs", name="theirs")
    for typed in ("a1b", "pod7", "glasshouse-1-2-3", "a1b2c3d4e5f6"):
        assert find([one, other, foreign], typed) is one
    for typed, code in (("a1", "allocation_ambiguous"), ("theirs", "allocation_unknown"), ("", "allocation_unknown")):
        with pytest.raises(UsageError) as caught:
            find([one, other, foreign], typed)
        assert caught.value.code == code


def test_a_proof_counts_its_listings_and_what_is_not_proven_is_loud() -> None:
    gone = Ended(id="a", name="n", provider="runpod", outcome="gone", listings=2, others=1, reason="", price_per_hour=1)
    assert proof_text(gone, "pod7") == "gone     a  n: absent in 2 successful listings; others untouched: 1"
    outcomes: tuple[Literal["leaked", "unknown"], ...] = ("leaked", "unknown")
    for outcome in outcomes:
        lost = Ended(
            id="a", name="n", provider="runpod", outcome=outcome, listings=0, others=None, reason="why",
            price_per_hour=None,
        )  # fmt: skip
        said = proof_text(lost, "pod7")
        for part in (outcome.upper(), "an unknown price", "why", "https://console.runpod.io/pods (pod7)"):
            assert part in said, part


def test_a_quote_says_the_most_it_can_cost_and_when_the_pod_ends_itself() -> None:
    quote = Quote(provider="runpod", gpu_model="NVIDIA L4", price_per_hour=0.5)
    by_cost = quote_lines(quote, Spec(name="q", max_cost=1.0, max_seconds=86400.0), 30)
    assert "$0.50 an hour" in by_cost[0]
    assert "at most $1.00" in by_cost[1]
    assert "2h 00m" in by_cost[1]
    assert "$0.25" in by_cost[2]
    by_time = quote_lines(quote, Spec(name="q", max_cost=10.0, max_seconds=3600.0), None)
    assert "at most $0.50" in by_time[1]
    assert "1h 00m" in by_time[1]
    assert len(by_time) == 2
