"""Progress of a run as lines: one per transition, one per second while a segment trains, one at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import IO, Final

from engine.events import TrainEvaluated
from engine.store.failure import Failure
from engine.store.views import RunView, SegmentView
from engine.system.text import visible
from glasshouse_tui.commands.output import failure_lines, loss, plain, rate

_WIDTH: Final = 12
_CLEAR_LINE: Final = "\r\x1b[K"
_LONG_RUN_SECONDS: Final = 60.0
_LONG_RUN_INTERVAL: Final = 10.0


def transition_line(subject: str, state: str, reason: str) -> str:
    """`raw         training  reason`; segments are named by their kind."""
    name = plain(subject.removeprefix("segment:"))
    line = f"{name:<{_WIDTH}}{plain(state)}"
    return f"{line}  {plain(reason)}" if reason else line


def progress_line(view: RunView, segment: SegmentView) -> str:
    """`raw         training  steps 512/1800  118.2 steps/s  loss 2.31`; with the seconds for a target in time."""
    parts = [f"{segment.kind:<{_WIDTH}}{segment.state}"]
    budget, target = view.summary.step_budget, view.summary.target_sec
    if target is not None and segment.elapsed_sec is not None:
        parts.append(f"{segment.elapsed_sec:.1f}/{target:g} s")
    parts.append(f"steps {segment.steps}/{budget}" if budget is not None else f"steps {segment.steps}")
    parts.append(rate(segment.steps, segment.elapsed_sec))
    parts.append(f"loss {loss(segment.last_loss, 4)}")
    return "  ".join(parts)


def evaluated_line(found: TrainEvaluated) -> str:
    """`raw         held-out loss 5.12 before the training`, with the answer to the plan's question if it has one."""
    line = f"{found.segment:<{_WIDTH}}held-out loss {loss(found.loss, 4)} {found.moment} the training"
    return line if found.answer is None else f"{line}  answer: {plain(found.answer)}"


class Progress:
    """Writes successive views of one run as lines.

    On a terminal, the progress line overwrites itself. Elsewhere every line is appended, and after a minute of
    training there is only one every ten seconds.
    """

    def __init__(self, stream: IO[str], *, interval: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        """`interval` is in seconds; `clock` is monotonic."""
        self._stream = stream
        self._terminal = stream.isatty()
        self._interval = interval
        self._clock = clock
        self._last_transition = 0
        self._evaluations = 0
        self._shown: dict[str, tuple[float, int]] = {}
        self._open_line = False
        self._advised: set[str] = set()

    def show(self, view: RunView) -> None:
        """Write what has changed in `view`."""
        for transition in view.transitions:
            if transition.id > self._last_transition:
                self._last_transition = transition.id
                self._write(transition_line(transition.subject, transition.state, transition.reason))
                self._advise(transition.error)
        for evaluated in view.evaluations[self._evaluations :]:
            self._write(evaluated_line(evaluated))
        self._evaluations = len(view.evaluations)
        for segment in view.segments:
            if segment.steps:
                self._show_steps(view, segment)

    def _advise(self, failure: Failure | None) -> None:
        """Write what to do about a failure; once, though segment, run and cleanup may all report it."""
        if failure is not None and failure.hint not in self._advised:
            self._advised.add(failure.hint)
            for line in failure_lines(failure, indent=" " * _WIDTH):
                self._write(line)

    def say(self, text: str) -> None:
        """Write another line."""
        self._write(text)

    def close(self) -> None:
        """Finish a progress line that is still being overwritten."""
        if self._open_line:
            self._stream.write("\n")
            self._stream.flush()
            self._open_line = False

    def _show_steps(self, view: RunView, segment: SegmentView) -> None:
        now = self._clock()
        then, steps = self._shown.get(segment.kind, (-math.inf, 0))
        if steps == segment.steps:
            return
        long = not self._terminal and (segment.elapsed_sec or 0) > _LONG_RUN_SECONDS
        interval = _LONG_RUN_INTERVAL if long else self._interval
        if segment.state == "training" and now - then < interval:
            return
        self._shown[segment.kind] = (now, segment.steps)
        self._write(progress_line(view, segment), transient=segment.state == "training")

    def _write(self, text: str, *, transient: bool = False) -> None:
        line = visible(text, keep="\n")
        if not self._terminal:
            self._stream.write(line + "\n")
        elif transient:
            self._stream.write(f"{_CLEAR_LINE}{line}")
            self._open_line = True
        else:
            self._stream.write(f"{_CLEAR_LINE if self._open_line else ''}{line}\n")
            self._open_line = False
        self._stream.flush()
