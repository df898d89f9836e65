"""Reports about allocations: totals, alarms, prices; unknown values never count as zero."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from engine.allocations.cleanup import Ended
from engine.allocations.overview import Listed, Overview, Trouble
from engine.errors import UsageError
from engine.providers.protocol import Quote, Spec
from glasshouse_tui.allocation_status import is_unused, totals
from glasshouse_tui.commands.allocations import alarm_text, listing_text, trouble_text
from glasshouse_tui.commands.cleanup import find_allocation, proof_text
from glasshouse_tui.commands.price_quote import quote_lines

AT = "2026-05-17T14:03:20.000Z"


def listed(**fields: Any) -> Listed:
    """An allocation of ours, alive on RunPod, with `fields` replaced."""
    defaults: dict[str, Any] = {
        "ours": True,
        "id": "a1b2c3d4e5f6",
        "provider": "runpod",
        "name": "glasshouse-1-2-3",
        "allocation_id": "pod7",
        "gpu_model": "NVIDIA L4",
        "state": "active",
        "observation": "alive",
        "price_per_hour": 0.4,
        "since": "2026-05-17T13:03:20.000Z",
        "age_sec": 3600.0,
        "listed_since": None,
        "spent": 0.4,
        "run_id": "b81e44d0a6c1",
        "run_state": "running",
        "keep_until": None,
        "deadline": None,
        "reason": "",
    }
    return Listed(**(defaults | fields))


def text(*allocations: Listed) -> str:
    return listing_text(Overview(at=AT, allocations=allocations, troubles=()), offline=False)


def test_totals_add_open_allocations_and_are_lower_bounds_if_a_price_is_unknown() -> None:
    foreign = listed(ours=False, id=None, state="foreign", price_per_hour=9.0, spent=99.0)
    sums = totals([listed(), listed(state="leaked"), listed(state="gone", spent=7.0), foreign])
    assert (sums.open, sums.leaked, sums.foreign, sums.price_per_hour, sums.spent) == (2, 1, 1, 0.8, 0.8)
    assert sums.complete
    assert not totals([listed(price_per_hour=None, spent=None)]).complete
    assert "at least $0.40/h" in text(listed(), listed(price_per_hour=None, spent=None))


def test_a_line_shows_gpu_price_state_and_run() -> None:
    shown = text(listed())
    for part in ("a1b2c3d4e5f6", "runpod", "L4", "$0.40/h", "1h 00m", "active", "b81e44d0 running", "1 open at"):
        assert part in shown, part


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"observation": "stopped"}, "active, stopped"),
        ({"observation": "unknown"}, "active, unknown"),
        ({"observation": "gone"}, "active, gone"),
        ({"state": "kept", "keep_until": AT}, "kept until 2026-05-17"),
        ({"gpu_model": None, "price_per_hour": None, "spent": None}, "unknown"),
    ],
)
def test_unexpected_observations_and_unknown_values_are_shown(fields: dict[str, Any], expected: str) -> None:
    assert expected in text(listed(**fields))


def test_an_alarm_names_the_cost_and_how_to_terminate_the_allocation() -> None:
    leaked = alarm_text(listed(state="leaked", reason="terminate failed"))
    console = "https://console.runpod.io/pods"
    for part in ("LEAKED", "$0.40 an hour", "terminate failed", "glasshouse cleanup a1b2c3d4e5f6", "pod7", console):
        assert part in leaked, part
    unconfirmed = alarm_text(listed(reason="create_unanswered: no answer came", allocation_id=None))
    assert "UNANSWERED" in unconfirmed
    assert alarm_text(listed()) == alarm_text(listed(state="gone")) == ""
    assert alarm_text(listed(ours=False, id=None, state="foreign")) == ""


def test_the_allocations_of_an_unreachable_provider_are_unknown_and_not_absent() -> None:
    trouble = Trouble(provider="runpod", code="api_timeout", message="No answer came in time.", hint="Try again.")
    assert "unknown, not absent" in trouble_text(trouble)
    listing = Overview(at=AT, allocations=(), troubles=(trouble,))
    assert "Nothing is rented" not in listing_text(listing, offline=False)


def test_an_allocation_in_use_or_kept_is_not_reported_as_unused() -> None:
    assert not is_unused(listed(), {"b81e44d0a6c1"})
    assert not is_unused(listed(state="kept"), set())
    assert not is_unused(listed(state="gone"), set())
    assert is_unused(listed(), {"another"})


def test_an_allocation_is_found_by_unique_prefix_unless_it_is_foreign() -> None:
    one, other = listed(), listed(id="a1ffffffffff", allocation_id="pod9", name="glasshouse-1-2-4")
    foreign = listed(ours=False, id=None, state="foreign", allocation_id="theirs", name="theirs")
    for typed in ("a1b", "pod7", "glasshouse-1-2-3", "a1b2c3d4e5f6"):
        assert find_allocation([one, other, foreign], typed) is one
    for typed, code in (("a1", "allocation_ambiguous"), ("theirs", "allocation_unknown"), ("", "allocation_unknown")):
        with pytest.raises(UsageError) as caught:
            find_allocation([one, other, foreign], typed)
        assert caught.value.code == code


def test_a_proof_counts_its_listings_and_a_missing_proof_is_loud() -> None:
    gone = Ended(id="a", name="n", provider="runpod", outcome="gone", listings=2, others=1, reason="", price_per_hour=1)
    assert proof_text(gone, "pod7") == "gone     a  n: absent in 2 successful listings; others untouched: 1"
    outcomes: tuple[Literal["leaked", "unknown"], ...] = ("leaked", "unknown")
    for outcome in outcomes:
        lost = Ended(
            id="a",
            name="n",
            provider="runpod",
            outcome=outcome,
            listings=0,
            others=None,
            reason="why",
            price_per_hour=None,
        )
        shown = proof_text(lost, "pod7")
        for part in (outcome.upper(), "an unknown price", "why", "https://console.runpod.io/pods (pod7)"):
            assert part in shown, part


def test_a_quote_shows_the_maximum_cost_and_when_the_pod_terminates_itself() -> None:
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
