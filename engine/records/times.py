"""Whether the times of a run agree with each other: those of its two logs, and of its beginning and end.

Times in UTC are what a wall clock showed, which may have been set during the run. What lasts and costs is told by the
boot clock; where the two disagree, the row says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from engine.wire import Event

SLACK_SECONDS: Final = 60.0
DRIFT: Final = 0.001
"""By how much two clocks may differ: corrections of a wall clock in small steps, and by its rate."""


def contradictions(
    began: str | None,
    ended: str | None,
    duration: float | None,
    runner_log: Sequence[Event],
    pod_log: Sequence[Event],
    delegated: str | None = None,
) -> list[str]:
    """What contradicts what. `duration` in seconds by the boot clock, None if unknown; `delegated`: when the run's key
    was authorised, which is before it begins. Raises `ValueError` for what is not a time.
    """
    found = [
        f"the {whose} log runs backwards by {back:.0f} s"
        for whose, log in (("runner's", runner_log), ("allocation's", pod_log))
        if (back := _backwards(log)) > SLACK_SECONDS
    ]
    if began is not None and delegated is not None and _seconds(delegated, began) < -SLACK_SECONDS:
        found.append("it began before its key was authorised")
    if began is None or ended is None:
        return found
    by_utc = _seconds(began, ended)
    if by_utc < 0:
        found.append("it finished before it started")
    if duration is not None and abs(by_utc - duration) > SLACK_SECONDS + DRIFT * duration:
        found.append(f"it took {by_utc:.0f} s by UTC and {duration:.0f} s by the boot clock")
    return found


def _backwards(log: Sequence[Event]) -> float:
    """By how many seconds a log's time falls behind the latest before it, at most."""
    latest, most = None, 0.0
    for at in _times(log):
        if latest is not None and at < latest:
            most = max(most, (latest - at).total_seconds())
        latest = at if latest is None else max(latest, at)
    return most


def _times(log: Sequence[Event]) -> Iterator[datetime]:
    return (_moment(event.ts) for event in log)


def _seconds(earlier: str, later: str) -> float:
    return (_moment(later) - _moment(earlier)).total_seconds()


def _moment(text: str) -> datetime:
    """A time; one without a zone counts as UTC, so that any two can be compared."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
