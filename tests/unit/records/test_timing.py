"""`timing_consistent` and the timing slack, over stored logs: each rule fails alone, and honest times pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.events import (
    Body,
    SegmentState,
    Sighting,
    TrainCheckpoint,
    TrainFinished,
    TrainMeasured,
    TrainObserved,
    TrainStarted,
    fields_of,
    name_of,
)
from engine.plan import Target, preset
from engine.records.facts import Facts, gather
from engine.records.timing import LATE, timing_outcome, timing_slack_pct
from engine.store.reader import Reader
from engine.store.views import Series
from engine.store.writer import Writer
from engine.wire import ChainWriter, Event, utc_text

RUN = "0123456789ab"
DIGEST = "a" * 64
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
STEPS = 100
STEP = 0.1
POLL = 0.2
CHECKPOINTS = (25, 50, 75)


@dataclass
class Story:
    """A segment as it is told. Seconds; by default everything is true, and the runner looks every 0.2 s."""

    stated: Callable[[int], float] = lambda step: STEP
    """What the allocation says a step took; each one truly takes `STEP`."""
    clock: float = 1.0
    """What the allocation's monotonic clock makes of a true second."""
    wall: float = 1.0
    gap: float = 0.001
    """From the end of the window until it is logged."""
    digesting: float = 0.0
    """How long each checkpoint's digest takes, inside the next step."""
    ended: float = 0.0
    """How much earlier than its window's end the training phase ends."""
    unseen: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    boots: dict[str, str] = field(default_factory=dict)
    """The runner's boot when it saw an event; `first` unless it is given."""
    hidden: dict[str, float] = field(default_factory=dict)
    """How many seconds the allocation holds an event back."""
    polls: float = POLL


HONEST = Story()


class Logs:
    """Both logs as they grow, by a true clock."""

    def __init__(self) -> None:
        self.pod: list[Event] = []
        self.runner: list[Event] = []
        self._chains = {"pod": ChainWriter(RUN), "runner": ChainWriter(RUN)}
        self.now = 1.0
        self.series: dict[str, Series] = {}

    def _say(self, story: Story, body: Body) -> Event:
        at = utc_text(EPOCH + timedelta(seconds=self.now * story.wall))
        event = self._chains["pod"].append(name_of(type(body)), fields_of(body), ts=at)
        self.pod.append(event)
        return event

    def _seen(self, story: Story, event: Event, step: int | None = None) -> None:
        name = event.event.removeprefix("train.") + ("" if step is None else f" {step}")
        if name in story.unseen:
            return
        shown = self.now + story.hidden.get(name, 0.0)
        after = shown // story.polls * story.polls
        body = TrainObserved(
            seen=[Sighting(event=event.event, segment=event.body["segment"], step=step, hash=event.hash)],  # type: ignore[arg-type]
            after=round(after * 1e6),
            at=round((after + story.polls) * 1e6),
            clock=(story.boots.get(name, "1") * 64)[:64],
        )
        for _ in range(2 if name in story.twice else 1):
            self.runner.append(self._chains["runner"].append(name_of(TrainObserved), fields_of(body)))

    def tell(self, kind: Any, story: Story) -> None:
        """One segment from its launch to its end."""

        def at(seconds: float = 0.0) -> float:
            return round((self.now + seconds) * story.clock, 6)

        self._say(story, SegmentState(segment=kind, state="launching", at=at()))
        self.now += 3.0
        self._say(story, SegmentState(segment=kind, state="training", at=at()))
        self._seen(story, self._say(story, TrainStarted(segment=kind, gpu=None, settling_steps=0, numerics={})))
        nanos = [round(story.stated(step) * 1e9) for step in range(STEPS)]
        for step in range(STEPS):
            self.now += STEP
            if step + 1 in CHECKPOINTS:
                self.now += story.digesting
                body = TrainCheckpoint(segment=kind, step=step + 1, step_chain=None, tensor_digest=DIGEST)
                self._seen(story, self._say(story, body), step + 1)
                nanos[step + 1] += round(story.digesting * 1e9)
        self.now += story.gap
        ends = {"steps": STEPS, "elapsed_ns": sum(nanos)}
        self._seen(story, self._say(story, TrainMeasured(segment=kind, at=at(), **ends)))
        done = TrainFinished(
            segment=kind, stop_reason="step_budget", final_loss=1.5, adapter_finite=True, step_chain=None,
            tensor_digest=DIGEST, **ends,
        )  # fmt: skip
        self._seen(story, self._say(story, done))
        self._say(story, SegmentState(segment=kind, state="done" if kind == "raw" else "sealing", at=at(-story.ended)))
        self.series[kind] = Series(losses=(1.5,) * STEPS, nanos=tuple(nanos))


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Callable[..., Facts]]:
    """`told(raw=STORY, protected=STORY)`: the facts of a pair that went so."""
    demo = preset("demo")
    plan = msgspec.structs.replace(demo, target=Target(steps=STEPS))
    with Writer(tmp_path) as writer, Reader(tmp_path) as reader:
        writer.create_run(RUN, plan)

        def tell(raw: Story = HONEST, protected: Story = HONEST) -> Facts:
            logs = Logs()
            logs.tell("raw", raw)
            logs.tell("protected", protected)
            return msgspec.structs.replace(
                gather(reader, RUN), pod_log=logs.pod, runner_log=logs.runner, series=logs.series
            )

        yield tell


@pytest.mark.parametrize(
    "story",
    [
        HONEST,
        Story(gap=LATE - 0.1),  # a busy supervisor
        Story(digesting=7.0),  # a large adapter on a slow machine
        Story(polls=3.0),  # a slow link
        Story(hidden={"checkpoint 50": 1.5}),
        Story(clock=1.0005, wall=0.9995),
    ],
)
def test_honest_times_pass(told: Callable[..., Facts], story: Story) -> None:
    assert timing_outcome(told(story, story))[0] == "passed", timing_outcome(told(story, story))


@pytest.mark.parametrize(
    ("story", "reason"),
    [
        (Story(stated=lambda step: STEP / 3), "seconds|s, but"),
        (Story(stated=lambda step: 1e-9), "but"),
        (Story(stated=lambda step: STEP * 3), "but"),
        # The allocation's own clocks lie as its steps do, so only the runner's clock is left.
        (Story(stated=lambda step: STEP / 3, clock=1 / 3, wall=1 / 3), "runner saw at least"),
        (Story(stated=lambda step: STEP * 3, clock=3, wall=3), "runner saw at most"),
        # The sum is true; the allocation makes one part longer and another one shorter.
        (Story(stated=lambda step: STEP * (0.2 if step < 50 else 1.8)), "start to step 50"),
        (Story(clock=2.0), "between the log's events"),
        (Story(wall=1000.0), "wall-clock"),
        (Story(ended=5.0), "outside the training phase"),
        (Story(gap=LATE + 1.0), "between the log's events"),
        (Story(unseen=("started",)), "did not log when"),
        (Story(unseen=("measured",)), "did not log when"),
        (Story(unseen=("finished",)), "did not log when"),
        (Story(unseen=("checkpoint 50",)), "did not log when"),
        (Story(twice=("measured",)), "one twice"),
        (Story(boots={"measured": "2", "finished": "2"}), "does not span"),
    ],
)
@pytest.mark.parametrize("kind", ["raw", "protected"])
def test_a_contradiction_fails(told: Callable[..., Facts], story: Story, reason: str, kind: str) -> None:
    status, said = timing_outcome(told(**{kind: story}))
    assert status == "failed"
    assert any(part in said for part in reason.split("|")), said


def test_a_stated_sum_that_is_not_the_steps_fails(told: Callable[..., Facts]) -> None:
    facts = told()
    one = facts.series["raw"]
    changed = Series(losses=one.losses, nanos=(one.nanos[0] + 1, *one.nanos[1:]))
    facts = msgspec.structs.replace(facts, series={**facts.series, "raw": changed})
    assert timing_outcome(facts) == (
        "failed",
        "the raw step times do not add up to the time that the allocation states",
    )


def test_a_sighting_of_another_event_fails(told: Callable[..., Facts]) -> None:
    facts = told()
    first = facts.runner_log[0]
    for change in ({"hash": "0" * 64}, {"event": "train.finished"}, {"segment": "protected"}, {"step": 3}):
        body = {**first.body, "seen": [{**first.body["seen"][0], **change}]}
        log = [msgspec.structs.replace(first, body=body), *facts.runner_log[1:]]
        assert timing_outcome(msgspec.structs.replace(facts, runner_log=log))[0] == "failed", change


def test_a_reboot_between_the_segments_changes_nothing(told: Callable[..., Facts]) -> None:
    names = ["started", *(f"checkpoint {step}" for step in CHECKPOINTS), "measured", "finished"]
    later = Story(boots=dict.fromkeys(names, "2"))
    assert timing_outcome(told(protected=later))[0] == "passed"


def test_the_slack_is_what_the_runners_clock_leaves_open(told: Callable[..., Facts]) -> None:
    honest = timing_slack_pct(told())
    assert honest is not None
    # Each end of each segment of 10 s is known to 0.2 s, so each time to 0.4 s, in the worst case to the same side.
    assert 2.0 <= honest <= 8.1
    slower = timing_slack_pct(told(replace(HONEST, polls=1.0), replace(HONEST, polls=1.0)))
    assert slower is not None
    assert slower > honest


def test_a_lie_inside_the_slack_is_covered_by_it(told: Callable[..., Facts]) -> None:
    lie = Story(stated=lambda step: STEP * 0.9, clock=0.9, wall=0.9)
    facts = told(protected=lie)
    assert timing_outcome(facts)[0] == "passed"
    slack = timing_slack_pct(facts)
    assert slack is not None
    assert slack >= 11.1  # the true overhead is 0 %, and the stated one -11.1 %


def test_the_slack_is_unknown_when_the_times_are(told: Callable[..., Facts]) -> None:
    assert timing_slack_pct(told(Story(unseen=("started",)))) is None
    assert timing_slack_pct(told(Story(polls=60.0))) is None  # a window that the runner may have missed whole


def test_a_training_that_the_runner_may_have_missed_whole_proves_no_times(told: Callable[..., Facts]) -> None:
    blind = Story(polls=60.0, stated=lambda step: STEP / 10_000, clock=1e-4, wall=1e-4)
    status, reason = timing_outcome(told(blind))
    assert (status, "the runner saw nothing of the" in reason) == ("failed", True), reason
