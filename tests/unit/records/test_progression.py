"""What an allocation's log may say about the training of a plan: each rule refuses, and an honest log passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from engine.errors import RefusedError
from engine.events import (
    Body,
    Gpu,
    ProgressDigest,
    SegmentState,
    TrainCheckpoint,
    TrainEvaluated,
    TrainFinished,
    TrainMeasured,
    TrainStarted,
)
from engine.plan import Evaluation, Plan, Target, preset
from engine.records.progression import LAG, Progression

DIGEST = "a" * 64
GPU = Gpu(uuid="GPU-1", name="NVIDIA H100", driver="550")
NANOS = 10_000_000
Item = Body | tuple[list[float], list[int]]


def plan(target: Target | None = None, evaluation: Evaluation | None = None) -> Plan:
    demo = preset("demo")
    training = msgspec.structs.replace(demo.training, settling_steps=5, checkpoint_every=2)
    return msgspec.structs.replace(demo, training=training, target=target or Target(steps=4), evaluation=evaluation)


def state(name: str, at: float, segment: Any = "raw") -> SegmentState:
    return SegmentState(segment=segment, state=name, at=at)


def started(gpu: Gpu | None = None, settling: int = 5) -> TrainStarted:
    return TrainStarted(segment="raw", gpu=gpu, settling_steps=settling, numerics={})


def steps(count: int, loss: float = 1.5, nanos: int = NANOS) -> tuple[list[float], list[int]]:
    return [loss] * count, [nanos] * count


def checkpoint(step: int) -> TrainCheckpoint:
    return TrainCheckpoint(segment="raw", step=step, step_chain=None, tensor_digest=DIGEST)


def measured(count: int = 4, at: float = 4.0, nanos: int | None = None) -> TrainMeasured:
    return TrainMeasured(segment="raw", steps=count, elapsed_ns=count * NANOS if nanos is None else nanos, at=at)


def finished(count: int = 4, loss: float | None = 1.5, nanos: int | None = None) -> TrainFinished:
    elapsed = count * NANOS if nanos is None else nanos
    return TrainFinished(
        segment="raw", steps=count, stop_reason="step_budget", final_loss=loss, elapsed_ns=elapsed,
        adapter_finite=True, step_chain=None, tensor_digest=DIGEST,
    )  # fmt: skip


def head(gpu: Gpu | None = None) -> list[Item]:
    return [state("launching", 1.0), state("loading", 1.5), state("warming", 2.0), state("training", 3.0), started(gpu)]


def raw() -> list[Item]:
    """An honest raw segment."""
    middle: list[Item] = [steps(2), checkpoint(2), steps(2), measured(), checkpoint(4), finished()]
    return [*head(), *middle, state("done", 5.0)]


def follow(items: list[Item], target: Target | None = None, evaluation: Evaluation | None = None) -> Progression:
    progression = Progression(plan(target, evaluation))
    reached = 0
    for item in items:
        if isinstance(item, tuple):
            losses, nanos = item
            part = ProgressDigest(segment="raw", first=reached, to=reached + len(losses), sha256=DIGEST)
            progression.steps(part, losses, nanos)
            reached += len(losses)
        else:
            progression.take(item)
    return progression


def test_an_honest_segment_passes_and_the_next_one_may_begin() -> None:
    progression = follow([*raw(), state("launching", 5.0, "protected"), state("attesting", 6.0, "protected")])
    assert progression.tracks["raw"].finished
    assert (progression.tracks["raw"].steps, progression.tracks["raw"].nanos) == (4, 4 * NANOS)


def test_a_segment_after_a_failed_one_can_only_fail() -> None:
    failed = [state("launching", 1.0), state("failed", 2.0)]
    follow([*failed, state("failed", 2.0, "protected")])
    with pytest.raises(RefusedError) as caught:
        follow([*failed, state("launching", 2.0, "protected")])
    assert caught.value.code == "phase_impossible"


@pytest.mark.parametrize(
    ("code", "items"),
    [
        ("phase_impossible", lambda: [state("loading", 1.0), state("launching", 2.0)]),
        ("phase_impossible", lambda: [state("loading", 1.0), state("loading", 2.0)]),
        ("phase_impossible", lambda: [state("attesting", 1.0)]),  # no state of a raw segment
        ("phase_impossible", lambda: [state("failed", 1.0), state("done", 2.0)]),
        ("phase_impossible", lambda: [state("launching", 1.0, "protected")]),  # the plan has raw first
        ("phase_impossible", lambda: [*head(), state("done", 4.0)]),
        ("training_out_of_order", lambda: [steps(1)]),
        ("training_out_of_order", lambda: [*head()[:-1], steps(1)]),
        ("training_out_of_order", lambda: [*head()[:-1], checkpoint(2)]),
        ("training_out_of_order", lambda: [*head()[:-2], started()]),
        ("training_out_of_order", lambda: [*head(), started()]),
        ("training_out_of_order", lambda: [*head(), steps(0)]),
        ("training_out_of_order", lambda: [*raw()[:-1], steps(1)]),
        ("training_out_of_order", lambda: [*raw()[:-1], checkpoint(6)]),
        ("training_out_of_order", lambda: [*raw()[:-1], finished()]),
        ("training_out_of_order", lambda: [*head(), steps(2), measured(2), steps(1)]),
        ("training_out_of_order", lambda: [*head(), steps(2), measured(2), measured(2)]),
        ("steps_over_plan", lambda: [*head(), steps(5)]),
        ("steps_over_plan", lambda: [*head(GPU), steps(5)]),  # a GPU's lag allows no step beyond a budget
        ("steps_over_plan", lambda: [*head()[:-1], started(settling=6)]),
        ("step_impossible", lambda: [*head(), steps(1, nanos=0)]),
        ("step_impossible", lambda: [*head(), steps(1, math.nan), steps(1)]),
        ("step_impossible", lambda: [*head(), ([1.5, math.inf, 1.5], [NANOS] * 3)]),
        ("checkpoint_impossible", lambda: [*head(), steps(1), checkpoint(1)]),
        ("checkpoint_impossible", lambda: [*head(), steps(2), checkpoint(2), checkpoint(2)]),
        ("checkpoint_impossible", lambda: [*head(), steps(2), checkpoint(4)]),
        ("checkpoint_impossible", lambda: [*head(), steps(3), checkpoint(2)]),
        ("checkpoint_impossible", lambda: [*head(), checkpoint(0)]),
        ("time_impossible", lambda: [state("launching", -1.0)]),
        ("time_impossible", lambda: [state("launching", math.nan)]),
        ("time_impossible", lambda: [state("launching", math.inf)]),
        ("time_impossible", lambda: [state("launching", 2.0), state("loading", 1.0)]),
        ("time_impossible", lambda: [*head(), steps(1), measured(1, at=2.0)]),
        ("time_impossible", lambda: [*raw()[:-1], state("done", 30 * 86400.0)]),
        ("finish_mismatch", lambda: [*head(), steps(4), measured(3)]),
        ("finish_mismatch", lambda: [*head(), steps(4), measured(nanos=5)]),
        ("finish_mismatch", lambda: [*head(), steps(4), finished(5)]),
        ("finish_mismatch", lambda: [*head(), steps(4), finished(nanos=5)]),
        ("finish_mismatch", lambda: [*head(), steps(4), finished(loss=1.0)]),
        ("finish_mismatch", lambda: [*head(), steps(4), finished(loss=None)]),
        ("finish_mismatch", lambda: [*head(), steps(1, math.nan), finished(1, loss=1.5)]),
        ("finish_mismatch", lambda: [*head()[:-1], started(settling=3), steps(4), finished()]),
    ],
)
def test_what_the_plan_cannot_produce_is_refused(code: str, items: Callable[[], list[Item]]) -> None:
    made = items()
    follow(made[:-1])
    with pytest.raises(RefusedError) as caught:
        follow(made)
    assert caught.value.code == code


def test_settling_that_a_stop_cut_short_is_followed_by_one_step() -> None:
    follow([*head()[:-1], started(settling=3), steps(1), measured(1), finished(1)])


def test_a_target_in_seconds_ends_at_the_step_that_crosses_it() -> None:
    target = Target(seconds=3 * NANOS / 1e9)
    follow([*head(), steps(3)], target)
    with pytest.raises(RefusedError) as caught:
        follow([*head(), steps(2), steps(2)], target)
    assert caught.value.code == "steps_over_plan"


def test_a_gpu_may_have_been_given_as_many_steps_as_its_ring_holds() -> None:
    target = Target(seconds=3 * NANOS / 1e9)
    follow([*head(GPU), steps(3 + LAG)], target)
    follow([*head(GPU), steps(1, math.nan), steps(LAG)], Target(steps=5000))
    with pytest.raises(RefusedError):
        follow([*head(GPU), steps(4 + LAG)], target)
    with pytest.raises(RefusedError):
        follow([*head(GPU), steps(1, math.nan), steps(LAG), steps(1)], Target(steps=5000))


HELD_OUT = Evaluation(source="builtin", name="demo-heldout", question="Who?")


def evaluated(moment: Any, tokens: int = 9, answer: str | None = "Nobody.") -> TrainEvaluated:
    return TrainEvaluated(segment="raw", moment=moment, loss=2.5, samples=3, tokens=tokens, answer=answer)


def with_held_out(
    before: TrainEvaluated | None, after: TrainEvaluated | None, *, stop: str = "step_budget"
) -> list[Item]:
    """A raw segment with these evaluations in their places."""
    first = head()
    last: list[Item] = [steps(4), measured()]
    end = msgspec.structs.replace(finished(), stop_reason=stop)
    return [
        *first[:-2], *([before] if before else []), *first[-2:], *last, *([after] if after else []), end,
    ]  # fmt: skip


def test_the_held_out_loss_is_reported_once_before_and_once_after_the_training() -> None:
    follow(with_held_out(evaluated("before"), evaluated("after")), evaluation=HELD_OUT)
    follow(with_held_out(evaluated("before"), None, stop="cancelled"), evaluation=HELD_OUT)


@pytest.mark.parametrize(
    "items",
    [
        lambda: with_held_out(None, evaluated("after")),
        lambda: with_held_out(evaluated("before"), None),
        lambda: with_held_out(evaluated("after"), evaluated("after")),
        lambda: with_held_out(evaluated("before"), evaluated("before")),
        lambda: with_held_out(evaluated("before"), evaluated("after", tokens=8)),
        lambda: with_held_out(evaluated("before"), evaluated("after", answer=None)),
        lambda: [*with_held_out(evaluated("before"), evaluated("after")), evaluated("after")],
        lambda: [*with_held_out(evaluated("before"), evaluated("after"))[:4], evaluated("before")],
    ],
)
def test_another_held_out_loss_than_the_plans_is_refused(items: Any) -> None:
    with pytest.raises(RefusedError) as caught:
        follow(items(), evaluation=HELD_OUT)
    assert caught.value.code == "evaluation_impossible"


def test_a_plan_that_holds_nothing_out_has_no_held_out_loss() -> None:
    with pytest.raises(RefusedError) as caught:
        follow(with_held_out(evaluated("before"), evaluated("after")))
    assert caught.value.code == "evaluation_impossible"
