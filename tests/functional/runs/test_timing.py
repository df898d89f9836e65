"""A worker that lies about its step times gets no clean row and no overhead; inside the slack, the slack is stated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.records.row import OF_TIMING
from tests.functional.runs.support import Operator, checks_of, short_plan

SMALL = "engine/worker/training/small.py"
TAKEN = "nanos.append(now - began)"
LIES = {
    "a third": "(now - began) // 3",
    "a nanosecond": "1",
    "a raw segment made slower": "(now - began) * (1 if with_evidence else 3)",
}
"""What the training appends in place of the time that a step took."""
INSIDE = "(now - began) * (9 if with_evidence else 10) // 10"


@pytest.fixture
def lie(small_tree: Path) -> Iterator[Callable[[str], None]]:
    """`lie(taken)`: the training says this of how long a step took, until the test ends."""
    place = small_tree / SMALL
    honest = place.read_text()
    assert honest.count(TAKEN) == 1

    def tell(taken: str) -> None:
        place.write_text(honest.replace(TAKEN, f"nanos.append({taken})"))

    yield tell
    place.write_text(honest)


def row_proof(operator: Operator, run_id: str) -> str:
    """Whether `verify` recomputes the same row, checks included; it does not know the bundle of these workers."""
    return next(proof.status for proof in operator.verified(run_id).proofs if proof.name == "row")


@pytest.mark.parametrize("what", LIES)
def test_step_times_that_the_runner_saw_otherwise_give_no_clean_row(
    operator: Operator, lie: Callable[[str], None], what: str
) -> None:
    lie(LIES[what])
    view = operator.finish(operator.start(short_plan(steps=1000)))
    row = view.row or {}
    assert checks_of(view)["timing_consistent"] == "failed"
    assert row["clean"] is False
    assert {name: row[name] for name in OF_TIMING} == dict.fromkeys(OF_TIMING)
    assert view.summary.overhead_pct is None
    assert row_proof(operator, view.summary.id) == "passed"


def test_step_times_inside_the_slack_are_clean_and_the_row_says_how_far_they_could_be_off(
    operator: Operator, lie: Callable[[str], None]
) -> None:
    lie(INSIDE)
    view = operator.finish(operator.start(short_plan(steps=1000)))
    row = view.row or {}
    assert checks_of(view)["timing_consistent"] == "passed", row["checks"]
    # A tenth was taken off the protected segment; the slack covers that, up to what the two segments' ends differ by.
    honest = 100 - (100 - row["overheadPct"]) * 0.9
    assert row["timingSlackPct"] >= honest - row["overheadPct"] - 1
    assert (row["rawUpdates"], row["rawSamplesUsed"], row["protectedUpdates"]) == (1005, 4 * 1005, 1005)
    assert row["rawEpochs"] == pytest.approx(4 * 1005 / row["dataSamples"], abs=1e-6)
    assert row["clean"] is True
    assert row_proof(operator, view.summary.id) == "passed"
