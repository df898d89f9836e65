"""What the allocation's log may say about the training of a plan: the order of its events, their counts and times.

The runner refuses the first event that the plan cannot produce, and `verify` the log that has one. Both use this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from engine.attestation.reasons import refusal
from engine.events import (
    Body,
    ProgressDigest,
    SegmentState,
    TrainCheckpoint,
    TrainEvaluated,
    TrainFinished,
    TrainMeasured,
    TrainStarted,
)
from engine.plan import MAX_STEPS, STOPPED, Plan, SegmentKind, longest_seconds
from engine.store.views import PROTECTED_STAGES, RAW_STAGES

LAG: Final = 1024
"""How many steps a GPU may have been given before the loss or the time of an earlier one is known: the recorder's ring.
On a CPU each step is complete before the next one begins.
"""
LEASE_MARGIN: Final = 3600.0
"""Seconds beyond the longest time of the plan: the step in progress is finished, and its adapter digested."""
STAGES: Final[Mapping[str, Sequence[str]]] = {"raw": RAW_STAGES, "protected": PROTECTED_STAGES}
_ENDED: Final = ("done", "failed")


@dataclass
class Track:
    """One segment, as far as the log has told."""

    state: str = "pending"
    since: float = 0.0
    started: TrainStarted | None = None
    steps: int = 0
    nanos: int = 0
    last_loss: float | None = None
    beyond: int = 0
    """Steps after the one that reached the target in seconds."""
    after_nonfinite: int | None = None
    """Steps after the first loss that is not finite; None while every loss is finite."""
    checkpoint: int = 0
    measured: bool = False
    evaluated: tuple[TrainEvaluated, ...] = ()
    finished: bool = False


@dataclass
class Progression:
    """Follows the training in an allocation's log. Every method raises `RefusedError` for what the plan cannot produce:
    `phase_impossible`, `training_out_of_order`, `steps_over_plan`, `step_impossible`, `checkpoint_impossible`,
    `evaluation_impossible`, `time_impossible`, `finish_mismatch`.
    """

    plan: Plan
    tracks: dict[str, Track] = field(default_factory=dict)
    _at: float = 0.0

    def __post_init__(self) -> None:
        for kind in self.plan.kinds():
            self.tracks.setdefault(kind, Track())

    def take(self, body: Body) -> None:
        """Follow one event other than `train.progress`; those that say nothing about the training are passed over."""
        match body:
            case SegmentState():
                self._state(body)
            case TrainStarted():
                self._started(body)
            case TrainEvaluated():
                self._evaluated(body)
            case TrainCheckpoint():
                self._checkpoint(body)
            case TrainMeasured():
                self._measured(body)
            case TrainFinished():
                self._finished(body)

    def within_budget(self, steps: int) -> None:
        """Refuse more steps than the plan has (`steps_over_plan`): asked before any is unpacked."""
        if steps > min(self.plan.target.steps or MAX_STEPS, MAX_STEPS):
            raise refusal("steps_over_plan", f"{steps} steps")

    def steps(self, part: ProgressDigest, losses: Sequence[float], nanos: Sequence[int]) -> None:
        """Follow one `train.progress`: the range, and the steps in it."""
        track = self._training(part.segment, "steps")
        if track.measured:
            raise refusal("training_out_of_order", "steps after the end of the measured window")
        if part.first != track.steps or part.to - part.first != len(losses) or len(losses) != len(nanos):
            raise refusal("training_out_of_order", "steps that do not continue the series")
        if not losses:
            raise refusal("training_out_of_order", "a report of no steps")
        self._count(track, nanos)
        self._losses(track, losses)
        track.last_loss = losses[-1]

    def _track(self, kind: SegmentKind) -> Track:
        if kind not in self.tracks:
            raise refusal("phase_impossible", f"the plan has no {kind} segment")
        return self.tracks[kind]

    def _training(self, kind: SegmentKind, what: str) -> Track:
        """The segment, which must be between its `train.started` and its `train.finished`."""
        track = self._track(kind)
        if track.started is None or track.finished or track.state != "training":
            where = "after the end" if track.finished else "before the start"
            raise refusal("training_out_of_order", f"{what} {where} of the {kind} training")
        return track

    def _advance(self, at: float) -> None:
        if not math.isfinite(at) or at < self._at:
            raise refusal("time_impossible", "the supervisor's clock ran backwards")
        self._at = at

    def _state(self, body: SegmentState) -> None:
        track, stages = self._track(body.segment), (*STAGES[body.segment], "failed")
        if body.state not in stages:
            raise refusal("phase_impossible", f"a {body.segment} segment has no such state")
        if track.state in _ENDED or stages.index(body.state) <= stages.index(track.state):
            raise refusal("phase_impossible", f"{body.state} after {track.state} in the {body.segment} segment")
        self._require_turn(body)
        self._advance(body.at)
        if track.state == "training":
            self._require_trained(track, body)
        track.state, track.since = body.state, body.at

    def _require_turn(self, body: SegmentState) -> None:
        """A segment begins once every segment before it is done; if one failed, it can only fail as well."""
        kinds = self.plan.kinds()
        before = [self.tracks[kind].state for kind in kinds[: kinds.index(body.segment)]]
        needed = _ENDED if body.state == "failed" else ("done",)
        if any(state not in needed for state in before):
            raise refusal("phase_impossible", f"the {body.segment} segment began before its turn")

    def _require_trained(self, track: Track, body: SegmentState) -> None:
        if body.state != "failed" and not track.finished:
            raise refusal("phase_impossible", f"the {body.segment} segment left its training before the end of it")
        if body.at - track.since > longest_seconds(self.plan) + LEASE_MARGIN:
            raise refusal("time_impossible", "a training longer than the lease")

    def _started(self, body: TrainStarted) -> None:
        track = self._track(body.segment)
        if track.started is not None or track.state != "training":
            raise refusal("training_out_of_order", f"a start in the state {track.state}, or a second one")
        if body.settling_steps > self.plan.training.settling_steps:
            raise refusal("steps_over_plan", f"{body.settling_steps} settling steps")
        if self.plan.evaluation is not None and not track.evaluated:
            raise refusal("evaluation_impossible", "the training began without the held-out loss before it")
        track.started = body

    def _lag(self, track: Track) -> int:
        return LAG if track.started is not None and track.started.gpu is not None else 0

    def _count(self, track: Track, nanos: Sequence[int]) -> None:
        if not all(nanos):
            raise refusal("step_impossible", "a step that took no time")
        target = self.plan.target
        track.steps += len(nanos)
        self.within_budget(track.steps)
        before, track.nanos = track.nanos, track.nanos + sum(nanos)
        if target.seconds is None or track.nanos < (reached := round(target.seconds * 1e9)):
            return
        for taken in nanos:
            track.beyond += before >= reached
            before += taken
        if track.beyond > self._lag(track):
            raise refusal("steps_over_plan", f"{track.beyond} steps after the target was reached")

    def _losses(self, track: Track, losses: Sequence[float]) -> None:
        if not self.plan.training.fail_on_nonfinite:
            return
        if track.after_nonfinite is not None:
            track.after_nonfinite += len(losses)
        elif not all(map(math.isfinite, losses)):
            first = next(place for place, loss in enumerate(losses) if not math.isfinite(loss))
            track.after_nonfinite = len(losses) - first - 1
        if (track.after_nonfinite or 0) > self._lag(track):
            raise refusal("step_impossible", "training went on after a loss that is not finite")

    def _checkpoint(self, body: TrainCheckpoint) -> None:
        track = self._training(body.segment, "a checkpoint")
        if body.step % self.plan.training.checkpoint_every or body.step <= track.checkpoint:
            raise refusal("checkpoint_impossible", f"step {body.step} is not the next of the plan's")
        if body.step != track.steps:
            raise refusal("checkpoint_impossible", f"step {body.step} after {track.steps} steps")
        track.checkpoint = body.step

    def _evaluated(self, body: TrainEvaluated) -> None:
        """Once before the training, in the state `warming`, and once after the measured window."""
        track, planned = self._track(body.segment), self.plan.evaluation
        before, ahead = body.moment == "before", track.started is None
        in_place = ahead and track.state == "warming" if before else track.measured and not track.finished
        if planned is None or not in_place or len(track.evaluated) != (0 if before else 1):
            raise refusal("evaluation_impossible", f"a held-out loss {body.moment} the training, where none is due")
        counts = self.plan.data.counts
        if counts is not None and body.samples != counts.held_out:
            raise refusal("evaluation_impossible", f"{body.samples} held-out samples where the plan has others")
        if (body.answer is None) != (planned.question is None):
            raise refusal("evaluation_impossible", "an answer without a question, or a question without an answer")
        if track.evaluated and track.evaluated[0].tokens != body.tokens:
            raise refusal("evaluation_impossible", "another number of held-out tokens than before the training")
        track.evaluated = (*track.evaluated, body)

    def _measured(self, body: TrainMeasured) -> None:
        track = self._training(body.segment, "the end of the measured window")
        if track.measured:
            raise refusal("training_out_of_order", "a second end of the measured window")
        self._advance(body.at)
        _require_counted(track, body.steps, body.elapsed_ns)
        track.measured = True

    def _finished(self, body: TrainFinished) -> None:
        track = self._training(body.segment, "an end")
        _require_counted(track, body.steps, body.elapsed_ns)
        last = track.last_loss if track.last_loss is not None and math.isfinite(track.last_loss) else None
        if body.final_loss != last:
            raise refusal("finish_mismatch", "the final loss is not the last step's")
        if self.plan.evaluation is not None and len(track.evaluated) < 2 and body.stop_reason not in STOPPED:
            raise refusal("evaluation_impossible", "the training ended without the held-out loss after it")
        started, planned = track.started, self.plan.training.settling_steps
        if started is not None and started.settling_steps < planned and track.steps > 1:
            # Only a request to stop ends the settling early, and then the training stops after its first step.
            raise refusal("finish_mismatch", "the settling ended early, and the training did not")
        track.finished = True


def _require_counted(track: Track, steps: int, elapsed_ns: int) -> None:
    """The allocation's totals must be those of the steps that it sent."""
    if steps != track.steps or elapsed_ns != track.nanos:
        raise refusal("finish_mismatch", f"{steps} steps where {track.steps} were sent, or another sum of their times")
