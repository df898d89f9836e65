"""When the loop checks for a request to stop."""

from __future__ import annotations

from typing import Any

from engine.plan import StopReason
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
