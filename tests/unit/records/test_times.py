"""The check `times_consistent`: a row whose times contradict each other says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from engine.records.times import contradictions
from engine.wire import ChainWriter, Event, utc_text

BEGAN = datetime(2026, 11, 1, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    return utc_text(BEGAN + timedelta(seconds=seconds))


def log(*seconds: float) -> list[Event]:
    chain = ChainWriter("0123456789ab")
    return [chain.append("log", {"text": "x"}, ts=at(second)) for second in seconds]


@pytest.mark.parametrize(
    ("ended", "duration", "runner", "pod", "expected"),
    [
        (300.0, 300.2, (0, 10, 290), (5, 200, 280), []),
        (300.0, None, (0, 10, 290), (5, 200, 280), []),
        (330.0, 300.0, (0, 10, 290), (5, 160, 130), []),  # small corrections of a clock
        (
            -86_100.0,
            300.0,
            (0,),
            (),
            ["it finished before it started", "it took -86100 s by UTC and 300 s by the boot"],
        ),
        (-1.0, None, (0,), (), ["it finished before it started"]),
        (86_700.0, 300.0, (0,), (), ["it took 86700 s by UTC and 300 s by the boot"]),
        (300.0, 300.0, (0, 86_400, 200), (), ["the runner's log runs backwards by 86200 s"]),
        (300.0, 300.0, (0, 100), (0, 500, 450, 400, 350, 300), ["the allocation's log runs backwards by 200 s"]),
    ],
)
def test_times_that_contradict_each_other_are_named(
    ended: float, duration: float | None, runner: tuple[float, ...], pod: tuple[float, ...], expected: list[str]
) -> None:
    found = contradictions(at(0), at(ended), duration, log(*runner), log(*pod))
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))


def test_a_run_does_not_begin_before_its_key_was_authorised() -> None:
    assert contradictions(at(0), at(9), 9.0, [], [], at(3600)) == ["it began before its key was authorised"]
    assert contradictions(at(0), at(9), 9.0, [], [], at(-1)) == []


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01T00:00:00Z"])
def test_what_is_not_a_time_is_refused(text: str) -> None:
    event = ChainWriter("0123456789ab").append("log", {}, ts=text)
    with pytest.raises(ValueError, match=r".+"):
        contradictions(at(0), at(9), 9.0, [], [event])
