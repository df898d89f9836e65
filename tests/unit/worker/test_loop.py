"""When the loop checks for a request to stop."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine.plan import Plan, StopReason, Target, preset
from engine.worker.training import loop


class _Recorder:
    elapsed_ns = 0
    nonfinite_at: int | None = None

    def start(self) -> None:
        pass

    def step(self, loss: Any) -> None:
        pass

    def drain(self, *, all_steps: bool) -> tuple[list[float], list[int]]:
        return [1.0], [1]


class _Reporter:
    def __init__(self) -> None:
        self.checks = 0

    def progress(self, first: int, losses: list[float], nanos: list[int]) -> None:
        pass

    def checkpoint(self, step: int, tensor_digest: str, step_chain: str | None) -> None:
        pass

    def should_stop(self) -> StopReason | None:
        self.checks += 1
        return "cancelled"


def test_frequent_checkpoints_do_not_delay_the_check_for_a_stop(monkeypatch: Any) -> None:
    monkeypatch.setattr(loop, "REPORT_EVERY_NS", 2_000_000)
    reporter = _Reporter()
    flush = loop._Flusher(_Recorder(), reporter)
    for _ in range(10_000_000):
        flush.now(all_steps=True)
        flush.when_due()
        if flush.asked_to_stop is not None:
            break
    assert reporter.checks == 1
    assert flush.last_loss == 1.0


class _Loss:
    def item(self) -> float:
        return 1.0


class _Steps:
    """A trainer whose step takes five milliseconds, whatever else the machine does."""

    workload = SimpleNamespace(device="cpu", trainable={})
    last_row = 0

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def step(self) -> _Loss:
        time.sleep(0.005)
        return _Loss()


class _Listener(_Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.nanos: list[int] = []

    def progress(self, first: int, losses: list[float], nanos: list[int]) -> None:
        self.nanos += nanos

    def should_stop(self) -> StopReason | None:
        return None


def _plan(**training: int) -> Plan:
    demo = preset("demo")
    settings = msgspec.structs.replace(demo.training, **training)
    return msgspec.structs.replace(demo, training=settings, target=Target(steps=4))


@pytest.mark.parametrize(("stopped_after", "counted"), [(None, 6), (2, 2), (6, 6)])
def test_settling_that_a_stop_ends_is_not_counted_as_whole(stopped_after: int | None, counted: int) -> None:
    class Stopping(_Listener):
        asked = 0

        def should_stop(self) -> StopReason | None:
            self.asked += 1
            return "cancelled" if self.asked == stopped_after else None

    made: Any = _Steps(_plan(settling_steps=6))
    assert loop.settle(made, Stopping()) == counted


def test_the_last_steps_checkpoint_is_left_to_the_end_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest may take seconds, and the window must be reported as over before that."""
    monkeypatch.setattr("engine.worker.training.adapter.digest", lambda _: "0" * 64)
    reached: list[int] = []

    class Marked(_Listener):
        def checkpoint(self, step: int, tensor_digest: str, step_chain: str | None) -> None:
            reached.append(step)

    made: Any = _Steps(_plan(checkpoint_every=2))
    assert loop.measure(made, Marked(), with_evidence=False).steps == 4
    assert reached == [2]


@pytest.mark.parametrize("injected", [0.0, 100.0])
def test_an_injected_overhead_lengthens_each_protected_step(injected: float) -> None:
    plan = msgspec.structs.replace(preset("demo"), target=Target(steps=20), inject_overhead_pct=injected)
    fastest = {}
    for protected in (False, True):
        listener = _Listener()
        made: Any = _Steps(plan)
        outcome = loop.measure(made, listener, with_evidence=protected)
        assert (outcome.steps, outcome.stop_reason) == (20, "step_budget")
        fastest[protected] = min(listener.nanos)
    assert fastest[True] >= 5_000_000 * (1 + injected / 100)
    assert fastest[False] >= 5_000_000
