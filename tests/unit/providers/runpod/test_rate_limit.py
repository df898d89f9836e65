"""The rate limit that all processes of a home share."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from engine.providers.runpod.api.protocol import RateLimitedError
from engine.providers.runpod.api.rate_limit import FILE, Pace
from engine.system.clock import boot_seconds


async def take(pace: Pace, *, urgent: bool = False, calls: int = 1) -> None:
    async with pace.turn(urgent=urgent, calls=calls):
        pass


async def has_turn(pace: Pace, *, urgent: bool = False, calls: int = 1) -> bool:
    """Whether a turn is granted at once: a caller that has to wait is notified first."""

    def on_wait(seconds: float, why: str) -> None:
        raise TimeoutError

    pace.on_wait = on_wait
    try:
        await take(pace, urgent=urgent, calls=calls)
    except TimeoutError:
        return False
    finally:
        pace.on_wait = None
    return True


async def test_reads_leave_calls_for_urgent_ones(tmp_path: Path) -> None:
    one, other = Pace(tmp_path, 4), Pace(tmp_path, 4)
    for pace in (one, other, one):
        assert await has_turn(pace)
    assert not await has_turn(other)
    assert await has_turn(other, urgent=True)
    assert not await has_turn(one, urgent=True)


async def test_a_turn_of_two_calls_counts_twice(tmp_path: Path) -> None:
    pace = Pace(tmp_path, 4)
    assert await has_turn(pace, urgent=True, calls=2)
    assert await has_turn(pace, urgent=True, calls=2)
    assert not await has_turn(pace, urgent=True)
    assert await has_turn(Pace(tmp_path / "slow", 1), urgent=True, calls=2)


async def test_never_more_calls_in_a_period_than_allowed(tmp_path: Path) -> None:
    times: list[float] = []

    class Recorded(Pace):
        def _write(self, state: Any) -> None:
            times.append(state.calls[-1])  # when the turn was granted, not when its caller ran
            super()._write(state)

    paces = [Recorded(tmp_path, 4, period=0.5) for _ in range(3)]
    await asyncio.gather(*(take(pace, urgent=True) for pace in paces for _ in range(4)))
    times.sort()
    assert len(times) == 12
    assert all(later - earlier >= 0.5 for earlier, later in zip(times, times[4:], strict=False))


async def test_a_requested_pause_applies_to_all_processes_and_is_counted_down(tmp_path: Path) -> None:
    waits: list[tuple[float, str]] = []
    one, other = Pace(tmp_path, 30), Pace(tmp_path, 30, lambda seconds, why: waits.append((seconds, why)))
    with pytest.raises(RateLimitedError):
        async with one.turn():
            raise RateLimitedError(2.5)
    until = other.waiting_until()
    assert until is not None
    await take(other, urgent=True)
    assert boot_seconds() >= until
    assert len(waits) >= 2
    assert waits[0][0] > waits[-1][0] > 0
    assert "pause" in waits[0][1]
    assert other.waiting_until() is None


async def test_an_unusable_state_file_blocks_no_calls_and_the_limit_still_holds(tmp_path: Path) -> None:
    pace = Pace(tmp_path, 2)
    path = tmp_path / "allocations" / FILE
    path.write_text("{damaged")
    assert await has_turn(pace, urgent=True)
    path.unlink()
    path.mkdir()
    assert await has_turn(pace, urgent=True)
    assert not await has_turn(pace, urgent=True)


async def test_setting_the_clock_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(tmp_path, 2)
    assert await has_turn(pace, urgent=True, calls=2)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not await has_turn(pace, urgent=True)
