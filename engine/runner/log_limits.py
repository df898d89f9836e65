"""What a plan can bring into an allocation's log at most: bytes, events, lines for people, checkpoints.

An honest supervisor stays far below. A flood at the rate that a link allows ends the run within these bounds, and with
it what the runner keeps in memory, in the database and in the row's artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from engine.errors import WireError
from engine.plan import Plan, longest_seconds
from engine.remote.tail import Tailed
from engine.wire import LOG, MAX_LOG_BYTES, TRAIN_CHECKPOINT, canonical

STEPS_A_SECOND: Final = 10_000
"""More than any model reaches: the smallest preset makes some hundred steps a second on a CPU."""
REPORTS_A_SECOND: Final = 2
BYTES_A_STEP: Final = 16
"""A loss and a time in base64."""
BYTES_AN_EVENT: Final = 1024
LOG_LINES: Final = 1000
LOG_BYTES: Final = 1024 * 1024
OTHER_EVENTS: Final = 1000
OTHER_BYTES: Final = 16 * 1024 * 1024
"""States, scans, the evidence and the receipts."""


class LogLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a run's log may have: bytes in all, events in all, checkpoints, `log` lines and their bytes."""

    bytes: int
    events: int
    checkpoints: int
    lines: int = LOG_LINES
    line_bytes: int = LOG_BYTES


def log_limits(plan: Plan) -> LogLimits:
    """The limits that follow from a plan: its steps or its seconds, its checkpoints, its segments."""
    seconds = longest_seconds(plan)
    steps = plan.target.steps or int(seconds * STEPS_A_SECOND)
    segments = len(plan.kinds())
    checkpoints = segments * (steps // plan.training.checkpoint_every + 2)
    reports = segments * min(steps, int(seconds * REPORTS_A_SECOND)) + checkpoints
    size = segments * steps * BYTES_A_STEP + (reports + checkpoints) * BYTES_AN_EVENT + OTHER_BYTES + LOG_BYTES
    return LogLimits(
        bytes=min(size, MAX_LOG_BYTES),
        events=reports + checkpoints + OTHER_EVENTS + LOG_LINES,
        checkpoints=checkpoints,
    )


class LogBudget:
    """Counts a log's events against the limits of its plan."""

    def __init__(self, limits: LogLimits, stored: Mapping[str, tuple[int, int]]) -> None:
        """`stored`: by name, how many events the store has already, and their bytes."""
        self._limits = limits
        self._lines, self._line_bytes = stored.get(LOG, (0, 0))
        self._checkpoints = stored.get(TRAIN_CHECKPOINT, (0, 0))[0]

    def within(self, tailed: Sequence[Tailed]) -> tuple[Sequence[Tailed], WireError | None]:
        """The events up to the first beyond a limit, and the refusal of that one (`log_flooded`)."""
        for place, one in enumerate(tailed):
            if beyond := self._beyond(one):
                return tailed[:place], WireError(
                    f"The allocation's log has more {beyond} than its plan can bring.",
                    "Do not trust this allocation: something floods its log.",
                    code="log_flooded",
                )
        return tailed, None

    def _beyond(self, one: Tailed) -> str | None:
        event, limits = one.event, self._limits
        if event.event == LOG:
            self._lines += 1
            self._line_bytes += len(canonical(event.body))
        elif event.event == TRAIN_CHECKPOINT:
            self._checkpoints += 1
        counted = {
            "events": event.seq >= limits.events,
            "lines": self._lines > limits.lines,
            "text in its lines": self._line_bytes > limits.line_bytes,
            "checkpoints": self._checkpoints > limits.checkpoints,
        }
        return next((what for what, is_beyond in counted.items() if is_beyond), None)
