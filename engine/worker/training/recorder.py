"""Per-step losses and times of a measured window."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any, Final, Protocol

from engine.measure.stepchain import StepChain

RING: Final = 1024


class Recorder(Protocol):
    """Records the steps of a measured window. Each time runs from the end of the previous step, evidence included."""

    elapsed_ns: int
    nonfinite_at: int | None

    def start(self) -> None:
        """Open the window; synchronises the device."""

    def step(self, loss: Any) -> None:
        """Record the loss tensor of the step that was just issued."""

    def drain(self, *, all_steps: bool) -> tuple[list[float], list[int]]:
        """Losses and nanoseconds of the steps that completed since the last drain."""


class HostRecorder:
    """Reads each loss at once: on a CPU the step is complete when it returns."""

    def __init__(self, chain: StepChain | None) -> None:
        self._chain = chain
        self._losses: list[float] = []
        self._nanos: list[int] = []
        self._last = 0
        self._count = 0
        self.elapsed_ns = 0
        self.nonfinite_at: int | None = None

    def start(self) -> None:
        self._last = time.perf_counter_ns()

    def step(self, loss: Any) -> None:
        value = loss.item()
        now = time.perf_counter_ns()
        taken = now - self._last
        self._last = now
        self.elapsed_ns += taken
        self._losses.append(value)
        self._nanos.append(taken)
        self._count += 1
        if self._chain is not None:
            self._chain.add(value, taken)
        if self.nonfinite_at is None and not math.isfinite(value):
            self.nonfinite_at = self._count - 1

    def drain(self, *, all_steps: bool) -> tuple[list[float], list[int]]:
        del all_steps
        losses, nanos = self._losses, self._nanos
        self._losses, self._nanos = [], []
        return losses, nanos


class CudaRecorder:
    """Times steps by CUDA events and reads losses with a lag, so that the host never waits inside the window."""

    def __init__(self, chain: StepChain | None) -> None:
        self._chain = chain
        self._pending: deque[tuple[int, Any]] = deque()
        self._ring: Any = None
        self._losses: list[float] = []
        self._nanos: list[int] = []
        self._before: Any = None
        self._issued = 0
        self._count = 0
        self.elapsed_ns = 0
        self.nonfinite_at: int | None = None

    def start(self) -> None:
        import torch

        # Pinned memory, so that the copy is asynchronous; reading it does not involve the stream.
        self._ring = torch.zeros(RING, dtype=torch.float32, pin_memory=True)
        torch.cuda.synchronize()
        self._before = torch.cuda.Event(enable_timing=True)
        self._before.record()

    def step(self, loss: Any) -> None:
        import torch

        slot = self._issued % RING
        self._issued += 1
        self._ring[slot].copy_(loss.detach().float(), non_blocking=True)
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._pending.append((slot, event))
        self._collect(wait=len(self._pending) >= RING)

    def drain(self, *, all_steps: bool) -> tuple[list[float], list[int]]:
        self._collect(wait=all_steps)
        losses, nanos = self._losses, self._nanos
        self._losses, self._nanos = [], []
        return losses, nanos

    def _collect(self, *, wait: bool) -> None:
        while self._pending:
            slot, event = self._pending[0]
            if wait:
                event.synchronize()
            elif not event.query():
                return
            self._pending.popleft()
            taken = round(self._before.elapsed_time(event) * 1e6)
            self._before = event
            value = float(self._ring[slot])
            self.elapsed_ns += taken
            self._losses.append(value)
            self._nanos.append(taken)
            self._count += 1
            if self._chain is not None:
                self._chain.add(value, taken)
            if self.nonfinite_at is None and not math.isfinite(value):
                self.nonfinite_at = self._count - 1
