from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from engine.plan import Plan, Target, preset, presets
from engine.remote.tail import Tailed
from engine.runner.log_limits import LOG_LINES, LogBudget, log_limits
from engine.wire import LOG, MAX_LOG_BYTES, TRAIN_CHECKPOINT, TRAIN_PROGRESS, ChainWriter


def _tailed(count: int, event: str, body: Callable[[int], dict[str, Any]], start: int = 0) -> list[Tailed]:
    chain = ChainWriter("run", next_seq=start)
    return [Tailed(chain.append(event, body(place)), place) for place in range(count)]


def _steps(steps: int) -> Plan:
    return msgspec.structs.replace(preset("demo"), target=Target(steps=steps))


def test_the_limits_follow_the_plan() -> None:
    small, large = log_limits(_steps(3)), log_limits(_steps(100_000))
    assert small.events < large.events
    assert small.bytes < large.bytes <= MAX_LOG_BYTES
    assert small.checkpoints == 4
    for plan in presets().values():
        limits = log_limits(plan)
        assert limits.bytes <= MAX_LOG_BYTES
        assert limits.events < 10_000_000


@pytest.mark.parametrize(
    ("event", "body", "allowed", "what"),
    [
        (LOG, lambda n: {"text": str(n)}, LOG_LINES, "lines"),
        (LOG, lambda n: {"text": "x" * 100_000}, 10, "text in its lines"),
        (TRAIN_CHECKPOINT, lambda n: {"step": n}, 4, "checkpoints"),
        (TRAIN_PROGRESS, lambda n: {}, log_limits(_steps(3)).events, "events"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_within_the_limits_is_kept_and_the_rest_refused(
    event: str, body: Callable[[int], dict[str, Any]], allowed: int, what: str
) -> None:
    flood = _tailed(allowed + 1, event, body)
    kept, refusal = LogBudget(log_limits(_steps(3)), {}).within(flood[:-1])
    assert (list(kept), refusal) == (flood[:-1], None)
    kept, refusal = LogBudget(log_limits(_steps(3)), {}).within(flood)
    assert list(kept) == flood[:-1]
    assert refusal is not None
    assert refusal.code == "log_flooded"
    assert f"more {what} than" in refusal.message


def test_a_restarted_runner_goes_on_counting() -> None:
    stored = {LOG: (LOG_LINES - 1, 1), TRAIN_CHECKPOINT: (3, 1)}
    budget = LogBudget(log_limits(_steps(3)), stored)
    assert budget.within(_tailed(1, LOG, lambda _: {}, 5000)[:1])[1] is not None  # by its number alone
    budget = LogBudget(log_limits(_steps(3)), stored)
    assert budget.within(_tailed(1, LOG, lambda _: {}))[1] is None
    assert budget.within(_tailed(1, LOG, lambda _: {}))[1] is not None
