"""Whether a segment's step times can be true: held against each other, the allocation's log and the runner's clock.

An allocation times its own steps. The runner logs when it saw the training's events, and when it had last looked
without seeing them (`train.observed`): so the true time between two events lies in a known span.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from engine.events import SegmentState, TrainCheckpoint, TrainFinished, TrainMeasured, TrainObserved, TrainStarted
from engine.measure.overhead import pair_overhead_pct
from engine.plan import SegmentKind
from engine.records.facts import CLOCK_SLACK, Facts, Logged
from engine.store.views import CheckStatus

RATE: Final = 0.005
"""How far two clocks may differ in rate: they are slewed by up to 0.05 %, and a GPU's is not slewed at all."""
EARLY: Final = 0.05
"""Seconds by which step times may exceed a span that must contain them: rounding, the resolution of a GPU's clock."""
LATE: Final = 2.0
"""Seconds that a busy supervisor may take to log what its trainer has reported."""
BLIND: Final = 20.0
"""Seconds in which a training may begin and end unseen, such as while a runner is started again. For longer ones an
allocation that cuts the link could state any times.
"""
_SECOND: Final = 1e9
_MICRO: Final = 1e-6


class TimingError(Exception):
    """A time that contradicts another one; the text is the check's reason."""


class Span(NamedTuple):
    """The least and the most seconds that lie between two events."""

    least: float
    most: float


@dataclass(frozen=True)
class Seen:
    """When the runner saw an event: not yet at `after` (None: unknown), at `at`; seconds on `clock`."""

    after: float | None
    at: float
    clock: str

    def until(self, later: Seen) -> Span | None:
        """The span between the two events; None if it is unknown, or measured by two clocks."""
        if self.clock != later.clock or self.after is None:
            return None
        return Span(max(0.0, (later.after or 0.0) - self.at), later.at - self.after)


@dataclass(frozen=True)
class Point:
    """An event of the training, and the least and the most measured seconds up to it."""

    what: str
    seen: Seen
    least: float
    most: float
    late: float
    """Seconds by which the event may have been logged after what it reports."""


@dataclass(frozen=True)
class Window:
    """One segment's measured window: its events in the allocation's log, and its seconds by the trainer's clock."""

    kind: SegmentKind
    started: Logged[TrainStarted]
    measured: Logged[TrainMeasured]
    finished: Logged[TrainFinished]
    steps: int
    seconds: float


def timing_reason(facts: Facts) -> str:
    """Check every segment of the plan; returns what was found, or raises `TimingError`."""
    observed = _observed(facts)
    found = []
    for kind in facts.plan.kinds():
        window = _window(facts, kind)
        _check_inside(facts, window)
        points = list(_points(facts, window, observed))
        whole = points[0].seen.until(points[-1].seen)
        if whole is None:
            raise TimingError(f"the runner's clock does not span the {kind} training")
        if not whole.least and whole.most > BLIND:
            raise TimingError(f"the runner saw nothing of the {kind} training for {whole.most:.1f} s by its clock")
        for first, last in _pairs(points):
            _check_span(kind, first, last)
        found.append(f"{kind} {window.seconds:.3f} s in {whole.least:.3f} to {whole.most:.3f} s of the runner's clock")
    return "; ".join(found)


def _pairs(points: Sequence[Point]) -> Iterator[tuple[Point, Point]]:
    """Neighbours, and every point with the start and with the end: errors that add up are seen as well."""
    yield from itertools.pairwise(points)
    for point in points[1:-1]:
        yield points[0], point
        yield point, points[-1]
    yield points[0], points[-1]


def timing_slack_pct(facts: Facts) -> float | None:
    """How far the pair's overhead could be from the one by the runner's own clock, in percent, rounded up.

    That is what an allocation can gain with step times that pass the check. None if it is unknown or unbounded.
    """
    try:
        raw, protected = (_timed(facts, kind) for kind in ("raw", "protected"))
    except TimingError:
        return None
    if not (raw[1].least > 0 and protected[1].least > 0):
        return None
    stated = _overhead(raw[0], protected[0], raw[0].seconds, protected[0].seconds)
    possible = [
        _overhead(raw[0], protected[0], *seconds)
        for seconds in ((raw[1].least, protected[1].most), (raw[1].most, protected[1].least))
    ]
    return math.ceil(max(abs(one - stated) for one in possible) * 100) / 100


def _overhead(raw: Window, protected: Window, raw_seconds: float, protected_seconds: float) -> float:
    return pair_overhead_pct(
        raw_steps=raw.steps,
        raw_elapsed_sec=raw_seconds,
        protected_steps=protected.steps,
        protected_elapsed_sec=protected_seconds,
    )


def _timed(facts: Facts, kind: SegmentKind) -> tuple[Window, Span]:
    window, observed = _window(facts, kind), _observed(facts)
    span = _seen(observed, window.started).until(_seen(observed, window.measured))
    if span is None:
        raise TimingError(f"the runner's clock does not span the {kind} training")
    return window, span


def _only(logged: Sequence[Logged], what: str) -> Logged:  # type: ignore[type-arg]
    if len(logged) != 1:
        raise TimingError(f"the log has {len(logged)} times {what}, not once")
    return logged[0]


def _window(facts: Facts, kind: SegmentKind) -> Window:
    started = _only(facts.pod(TrainStarted, kind), f"the start of the {kind} training")
    measured = _only(facts.pod(TrainMeasured, kind), f"the end of the {kind} window")
    finished = _only(facts.pod(TrainFinished, kind), f"the end of the {kind} training")
    nanos = facts.series[kind].nanos
    counted = (len(nanos), sum(nanos)) if nanos else (finished.body.steps, finished.body.elapsed_ns)
    for stated in (measured.body, finished.body):
        if (stated.steps, stated.elapsed_ns) != counted:
            raise TimingError(f"the {kind} step times do not add up to the time that the allocation states")
    if not started.seq < measured.seq < finished.seq or not counted[1]:
        raise TimingError(f"the {kind} training has no measured window")
    return Window(kind, started, measured, finished, counted[0], counted[1] / _SECOND)


def _observed(facts: Facts) -> dict[str, Seen]:
    """By the hash of the allocation's event, when the runner saw it."""
    logged = {event.hash: event for event in facts.pod_log}
    seen: dict[str, Seen] = {}
    for one in facts.runner(TrainObserved):
        body = one.body
        after = None if body.after is None else body.after * _MICRO
        if after is not None and body.after is not None and body.after > body.at:
            raise TimingError("the runner saw an event before it looked")
        for sighting in body.seen:
            event = logged.get(sighting.hash)
            if event is None or sighting.hash in seen:
                raise TimingError("the runner's log names an event that it did not see, or one twice")
            named = (event.event, event.body.get("segment"), event.body.get("step") if sighting.step else None)
            if named != (sighting.event, sighting.segment, sighting.step):
                raise TimingError("the runner's log names an event under another name")
            seen[sighting.hash] = Seen(after, body.at * _MICRO, body.clock)
    return seen


def _seen(observed: dict[str, Seen], event: Logged) -> Seen:  # type: ignore[type-arg]
    try:
        return observed[event.hash]
    except KeyError:
        raise TimingError("the runner did not log when it saw the training") from None


def _points(facts: Facts, window: Window, observed: dict[str, Seen]) -> Iterator[Point]:
    """The start, the checkpoints before the last step, and the end of the window."""
    _seen(observed, window.finished)
    yield Point("the start", _seen(observed, window.started), 0.0, 0.0, EARLY)
    nanos = facts.series[window.kind].nanos
    edges = list(itertools.accumulate(nanos, initial=0)) if nanos else []
    for checkpoint in facts.pod(TrainCheckpoint, window.kind):
        step, seen = checkpoint.body.step, _seen(observed, checkpoint)
        if edges and step < window.steps:
            # The adapter is digested before the event is logged; that belongs to the next step's time.
            yield Point(f"step {step}", seen, edges[step] / _SECOND, edges[step + 1] / _SECOND, LATE)
    yield Point("the end", _seen(observed, window.measured), window.seconds, window.seconds, EARLY)


def _check_span(kind: str, first: Point, last: Point) -> None:
    span = first.seen.until(last.seen)
    if span is None:
        return
    least, most = max(0.0, last.least - first.most), last.most - first.least
    if least > span.most * (1 + RATE) + first.late:
        raise TimingError(
            f"the {kind} steps from {first.what} to {last.what} take {least:.3f} s, "
            f"but the runner saw at most {span.most:.3f} s pass"
        )
    if most < span.least * (1 - RATE) - LATE:
        raise TimingError(
            f"the {kind} steps from {first.what} to {last.what} take {most:.3f} s, "
            f"but the runner saw at least {span.least:.3f} s pass"
        )


def _check_inside(facts: Facts, window: Window) -> None:
    """Hold the window against the allocation's own log: its monotonic clock, the phase, and its wall clock."""
    states = facts.pod(SegmentState, window.kind)
    training = next((place for place, one in enumerate(states) if one.body.state == "training"), None)
    if training is None or training + 1 >= len(states):
        raise TimingError(f"the {window.kind} segment has no training phase with an end")
    began, measured, ended = states[training].body.at, window.measured.body.at, states[training + 1].body.at
    if not began <= measured <= ended:
        raise TimingError(f"the {window.kind} window ends outside the training phase")
    _require_near(window, measured - began, "between the log's events", early=EARLY, late=LATE)
    # Wide, since a wall clock that was set is no fault of the step times.
    slack = CLOCK_SLACK.total_seconds()
    _require_near(window, _wall_seconds(facts, window), "between the log's wall-clock times", early=slack, late=slack)


def _require_near(window: Window, seconds: float, where: str, *, early: float, late: float) -> None:
    """The window may be shorter than this by what a busy supervisor takes to log, and not longer."""
    low, high = seconds * (1 - RATE) - late, seconds * (1 + RATE) + early
    if not low <= window.seconds <= high:
        raise TimingError(f"the {window.kind} steps take {window.seconds:.3f} s, but {seconds:.3f} s pass {where}")


def _wall_seconds(facts: Facts, window: Window) -> float:
    times = [datetime.fromisoformat(facts.pod_log[one.seq].ts) for one in (window.started, window.measured)]
    return (times[1] - times[0]).total_seconds()


def timing_outcome(facts: Facts) -> tuple[CheckStatus, str]:
    """The outcome of the check `timing_consistent`."""
    try:
        return "passed", timing_reason(facts)
    except TimingError as error:
        return "failed", str(error)
