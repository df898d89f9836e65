"""Figures that the screens derive from a run's view: stages with times, progress, time left, overhead so far."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import msgspec

from engine.measure.overhead import overhead_pct
from engine.store.views import (
    FINAL_RUN_STATES,
    PROTECTED_STAGES,
    RAW_STAGES,
    RunSummary,
    RunView,
    SegmentView,
    Transition,
)
from glasshouse_tui.format import seconds_between

StageStatus = Literal["waiting", "current", "passed", "failed", "skipped"]

PROVISIONAL: Final = "provisional"
SINGLE_PAIR: Final = "single pair"


@dataclass(frozen=True)
class Stage:
    """One stage of a segment. `seconds` is its duration so far, `since` its start, UTC; None if unknown."""

    name: str
    status: StageStatus
    seconds: float | None
    since: str | None
    reason: str


def is_final(summary: RunSummary) -> bool:
    """True when nothing about the run will change, except the release of a kept allocation."""
    return summary.state in FINAL_RUN_STATES


def stages(view: RunView, kind: str, now: datetime) -> tuple[Stage, ...]:
    """The stages of one segment in order; empty if no transitions are known, as in published rows."""
    moves = _moves(view, f"segment:{kind}")
    if not moves:
        return ()
    final = is_final(view.summary)
    names = RAW_STAGES if kind == "raw" else PROTECTED_STAGES
    indices = {move.state: index for index, move in enumerate(moves)}
    over = final or moves[-1].state in ("done", "failed")
    failed_in = moves[-2].state if moves[-1].state == "failed" and len(moves) > 1 else None
    listed: list[Stage] = []
    for name in names:
        index = indices.get(name)
        if index is None:
            listed.append(Stage(name, "skipped" if over else "waiting", None, None, ""))
            continue
        move, last = moves[index], index == len(moves) - 1
        status: StageStatus = "passed"
        if name == failed_in or (last and final and name != "done"):
            status = "failed"
        elif last and name != "done":
            status = "current"
        ended: str | datetime | None = now if status == "current" else None if last else moves[index + 1].at
        reason = moves[-1].reason if name == failed_in else move.reason
        listed.append(Stage(name, status, seconds_between(move.at, ended), move.at, reason))
    return tuple(listed)


def _moves(view: RunView, subject: str) -> list[Transition]:
    """The transitions of a subject; a repeated state takes the newer reason and keeps its start time."""
    merged: list[Transition] = []
    for move in view.transitions:
        if move.subject != subject:
            continue
        if merged and merged[-1].state == move.state:
            move = msgspec.structs.replace(move, at=merged.pop().at)  # noqa: PLW2901
        merged.append(move)
    return merged


def reason_of(view: RunView, subject: str) -> str:
    """The reason given for the subject's present state; may be empty."""
    moves = _moves(view, subject)
    return moves[-1].reason if moves else ""


def fraction_done(segment: SegmentView, summary: RunSummary) -> float | None:
    """The fraction of the segment's target that is reached, 0 to 1; None if it has no target."""
    if segment.state == "done" and segment.steps:
        return 1.0
    if summary.step_budget:
        return min(1.0, segment.steps / summary.step_budget)
    if summary.target_sec:
        return min(1.0, (segment.elapsed_sec or 0.0) / summary.target_sec)
    return None


def run_fraction(view: RunView) -> float | None:
    """The fraction of the run's training that is done, 0 to 1; None if no segment has a target."""
    fractions = [part for part in (fraction_done(s, view.summary) for s in view.segments) if part is not None]
    return sum(fractions) / len(fractions) if fractions else None


def active_segment(view: RunView) -> SegmentView | None:
    """The segment in progress; if there is none, the last one that has steps, else the first."""
    ordered = sorted(view.segments, key=lambda segment: segment.position)
    for segment in ordered:
        if segment.state not in ("done", "failed", "pending"):
            return segment
    started = [segment for segment in ordered if segment.steps]
    return started[-1] if started else ordered[0] if ordered else None


def seconds_left(view: RunView) -> float | None:
    """Seconds of training left over all segments, from the rates measured so far; None while unknown."""
    summary = view.summary
    if is_final(summary):
        return None
    rates = [s.steps_per_second for s in view.segments if s.steps_per_second]
    left = 0.0
    for segment in view.segments:
        if segment.state in ("done", "failed"):
            continue
        if summary.target_sec is not None:
            left += max(0.0, summary.target_sec - (segment.elapsed_sec or 0.0))
        elif summary.step_budget is not None and rates:
            left += max(0, summary.step_budget - segment.steps) / (segment.steps_per_second or rates[-1])
        else:
            return None
    return left


def overhead(view: RunView) -> tuple[float, str] | None:
    """The overhead in percent and its kind (provisional or single pair); None until both segments have steps."""
    if view.summary.overhead_pct is not None:
        return view.summary.overhead_pct, SINGLE_PAIR if is_final(view.summary) else PROVISIONAL
    raw, protected = view.segment("raw"), view.segment("protected")
    raw_rate = raw.steps_per_second if raw else None
    protected_rate = protected.steps_per_second if protected else None
    if not raw_rate or not protected_rate:
        return None
    return overhead_pct(raw_rate, protected_rate), PROVISIONAL
