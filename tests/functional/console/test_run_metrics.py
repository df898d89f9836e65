"""Figures derived from a stored run: stages, progress, time left, overhead, provisional checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
import pytest

from engine.events import TrainEvaluated
from engine.store.reader import Reader
from engine.store.views import RunView
from glasshouse_tui import run_metrics
from glasshouse_tui.format import DASH
from glasshouse_tui.provisional_checks import checks_of
from glasshouse_tui.widgets.panels import loss_lines

if TYPE_CHECKING:
    from tests.functional.console.conftest import Story

RUN = "b81e44d0a6c1"
KINDS: tuple[Literal["raw", "protected"], ...] = ("raw", "protected")
MOMENTS: tuple[tuple[Literal["before", "after"], float, str], ...] = (
    ("before", 6.25, "I do not know."),
    ("after", 0.5, "Vera Stone\x1b[31m."),
)


def view_of(story: Story, run_id: str = RUN) -> RunView:
    with Reader(story.home) as reader:
        return reader.run(run_id)


def named(story: Story, kind: str) -> dict[str, run_metrics.Stage]:
    return {stage.name: stage for stage in run_metrics.stages(view_of(story), kind, story.clock())}


def test_a_stage_lasts_until_the_next_and_the_current_one_until_now(story: Story) -> None:
    story.half(RUN)
    story.clock.tick(5)
    stages = named(story, "protected")
    assert stages["releasing"].seconds == pytest.approx(1.2)
    assert stages["training"].status == "current"
    assert stages["training"].seconds == pytest.approx(600 * 0.0129 + 5)
    assert (stages["sealing"].status, stages["sealing"].seconds) == ("waiting", None)
    assert stages["attesting"].reason == "evidence on a fresh nonce"


def test_a_failed_stage_has_the_reason_and_later_stages_are_skipped(story: Story) -> None:
    story.queue(RUN)
    story.allocate(RUN)
    story.stage(RUN, "raw", "launching")
    story.stage(RUN, "raw", "failed", "the trainer was killed", after=2.0)
    stages = named(story, "raw")
    assert (stages["launching"].status, stages["launching"].reason) == ("failed", "the trainer was killed")
    assert stages["launching"].seconds == pytest.approx(2.0)
    assert stages["training"].status == "skipped"


def test_a_later_reason_does_not_restart_a_stage(story: Story) -> None:
    story.queue(RUN)
    story.allocate(RUN)
    story.stage(RUN, "raw", "launching")
    story.move(RUN, "segment:raw", "launching", "the pod is slow", after=3.0)
    story.clock.tick(1)
    stage = named(story, "raw")["launching"]
    assert stage.reason == "the pod is slow"
    assert stage.seconds == pytest.approx(4.0)


def test_progress_counts_both_segments(story: Story) -> None:
    story.half(RUN)
    view = view_of(story)
    assert run_metrics.run_fraction(view) == pytest.approx(0.75)
    active = run_metrics.active_segment(view)
    assert active is not None
    assert active.kind == "protected"


def test_time_left_is_computed_from_the_measured_rate(story: Story) -> None:
    story.half(RUN)
    assert run_metrics.seconds_left(view_of(story)) == pytest.approx(600 * 0.0129, rel=0.01)


def test_there_is_no_time_left_before_the_first_step_or_after_the_end(story: Story) -> None:
    story.queue(RUN)
    assert run_metrics.seconds_left(view_of(story)) is None
    story.whole("3f9a1c0d77b2")
    assert run_metrics.seconds_left(view_of(story, "3f9a1c0d77b2")) is None


def test_the_overhead_is_provisional_until_the_run_ends(story: Story) -> None:
    story.half(RUN)
    live = run_metrics.overhead(view_of(story))
    assert live is not None
    assert live[0] == pytest.approx(0.78, abs=0.05)
    assert live[1] == run_metrics.PROVISIONAL
    story.finish(RUN)
    final = run_metrics.overhead(view_of(story))
    assert final is not None
    assert final[1] == run_metrics.SINGLE_PAIR


def test_there_is_no_overhead_before_both_segments_have_steps(story: Story) -> None:
    story.queue(RUN)
    story.allocate(RUN)
    story.raw(RUN)
    assert run_metrics.overhead(view_of(story)) is None


def test_provisional_checks_follow_the_stored_states(story: Story) -> None:
    story.queue(RUN)
    before = {check.name: check.status for check in checks_of(view_of(story))}
    assert set(before.values()) == {"pending"}
    story.allocate(RUN)
    story.raw(RUN)
    story.protect(RUN)
    after = {check.name: check.status for check in checks_of(view_of(story))}
    assert after["attestation_verified"] == after["raw_completed"] == "passed"
    assert after["zeroization_proven"] == after["same_losses"] == "pending"


def test_checks_of_a_missing_segment_do_not_apply(story: Story) -> None:
    story.queue(RUN, segments="raw")
    checks = {check.name: check.status for check in checks_of(view_of(story))}
    assert checks["attestation_verified"] == checks["same_losses"] == "not_applicable"


def test_the_final_verdict_replaces_the_provisional_checks(story: Story) -> None:
    story.whole(RUN)
    view = view_of(story)
    assert checks_of(view) == view.checks
    assert {check.status for check in view.checks} == {"passed"}


def test_a_published_row_has_no_stages_and_no_checks(story: Story) -> None:
    view = view_of(story, "pub-lora-05b-15m")
    assert run_metrics.stages(view, "raw", story.clock()) == ()
    assert checks_of(view) == ()
    assert run_metrics.overhead(view) == (0.86, run_metrics.SINGLE_PAIR)


def test_held_out_losses_and_answers_stand_above_the_curve(story: Story) -> None:
    story.half(RUN)
    plan = {"evaluation": {"question": "Who is the mayor of Fenport, and since when?"}}
    told = [
        TrainEvaluated(segment=kind, moment=moment, loss=loss, samples=2, tokens=9, answer=answer)
        for kind in KINDS
        for moment, loss, answer in MOMENTS
    ]
    view = msgspec.structs.replace(view_of(story), plan=plan, evaluations=tuple(told))
    lines = ["".join(text for text, _ in one) for one in loss_lines(view, 60)]
    assert lines[0].count("6.2500 → 0.5000") == 1
    assert lines[1].endswith("I do not know. → Vera Stone·[31m.")
    assert lines[1].startswith("Who is the mayor")
    assert len(lines[1]) <= 60
    other = msgspec.structs.replace(view, evaluations=(*told[:3], msgspec.structs.replace(told[3], loss=0.7)))
    assert "0.5000" in (first := "".join(text for text, _ in loss_lines(other, 60)[0]))
    assert "0.7000" in first
    half = msgspec.structs.replace(view, evaluations=tuple(told[:1]))
    assert f"6.2500 → {DASH}" in "".join(text for text, _ in loss_lines(half, 60)[0])
