"""Training without torch: the same stages on plain buffers, in place of `engine.worker.training` in a test's bundle.

Everything else in that bundle is the shipped worker: its trainer, its fences, its scanner, its key processes.
"""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from engine.measure.digest import tensor_digest
from engine.measure.safetensors_header import plan_layout
from engine.measure.stepchain import StepChain
from engine.worker.isolation import patterns
from engine.worker.isolation.wipe import sweep_heap, sweep_python, sweep_stack, trim

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
TOKENS = "tokens.safetensors"
WEIGHTS = "weights.safetensors"
FILES = (TOKENS, WEIGHTS)
WINDOW = 64
ADAPTER = "base_model.model.lora_B.weight"
VALUES = 1024


@dataclass
class Workload:
    """Maps of the payload, a row taken from it, and an adapter with its moments."""

    maps: dict[str, mmap.mmap]
    row: bytearray = field(default_factory=lambda: bytearray(WINDOW))
    trainable: dict[str, bytearray] = field(default_factory=dict)
    moments: bytearray = field(default_factory=lambda: bytearray(4096))
    device: str = "cpu"
    dtype: str = "bytes"


@dataclass
class Outcome:
    """As `loop.Outcome`."""

    steps: int
    elapsed_ns: int
    stop_reason: str
    final_loss: float
    step_chain: str | None = None
    last_row: int = 0


class Trainer:
    """The workload, and a buffer in place of an optimizer."""

    def __init__(self, workload: Workload, plan: Any) -> None:
        self.workload = workload
        self.plan = plan
        self.optimizer = workload.moments


_NOISE = os.memfd_create("small")
_hurry: list[bool] = []


def pin(noise_seed: int) -> None:
    """Derive the learnt values, all finite, from the seed alone, so that two segments learn the same.

    From here on SIGUSR1 makes the training finish at once, so that a test can let it run for as long as it needs.
    """
    signal.signal(signal.SIGUSR1, lambda *_: _hurry.append(True))
    noise = bytearray(hashlib.shake_256(noise_seed.to_bytes(16, "little")).digest(8 * VALUES))
    noise[3::4] = bytes(byte & 0xBF for byte in noise[3::4])
    os.pwrite(_NOISE, noise, 0)


def seed(noise_seed: int) -> None:
    """Nothing is drawn."""


def recorded(device: str, dtype: str) -> dict[str, Any]:
    """The numerics that this training has."""
    return {"device": device, "dtype": dtype}


def import_architecture(model_type: str) -> None:
    """Nothing to import."""


def load(plan: Any, files: dict[str, int]) -> Workload:
    """Map the payload read-only."""
    workload = Workload({name: mmap.mmap(fd, 0, prot=mmap.PROT_READ) for name, fd in files.items()})
    workload.trainable[ADAPTER] = bytearray(4 * VALUES)
    return workload


def _window(data: memoryview) -> int:
    """The start of a window of a file that is neither header nor padding."""
    for start in range(len(data) // 2, len(data) - WINDOW, 8):
        if patterns.usable(data[start : start + WINDOW // 2]):
            return start
    raise ValueError("the file has no window that a scan could look for")


def _fill(workload: Workload) -> None:
    """Fill the row with plaintext and the buffers with learnt values, without a copy that is never wiped."""
    with memoryview(workload.maps[TOKENS]) as tokens, memoryview(workload.row) as row:
        start = _window(tokens)
        row[:] = tokens[start : start + WINDOW]
    for offset, buffer in ((0, workload.trainable[ADAPTER]), (4 * VALUES, workload.moments)):
        os.preadv(_NOISE, [buffer], offset)


def settle(trainer: Trainer, reporter: Any) -> int:
    """The first step, in place of all that the plan asks for."""
    _fill(trainer.workload)
    return int(trainer.plan.training.settling_steps)


def measure(trainer: Trainer, reporter: Any, *, with_evidence: bool) -> Outcome:
    """Steps of five milliseconds, or of none after SIGUSR1; each is reported with the time it took."""
    target, every = trainer.plan.target, trainer.plan.training.checkpoint_every
    losses: list[float] = []
    nanos: list[int] = []
    chain = StepChain()
    reported, stop = 0, None
    began = time.perf_counter_ns()
    while stop is None:
        if not _hurry:
            time.sleep(0.005)
        now = time.perf_counter_ns()
        nanos.append(now - began)
        began = now  # as in the recorders, whatever is between two steps belongs to the later one
        losses.append(4.0 - len(nanos) % 64 / 64)
        chain.add(losses[-1], nanos[-1])
        if target.steps is not None and len(nanos) >= target.steps:
            stop = "step_budget"
        elif target.seconds is not None and sum(nanos) >= target.seconds * 1e9:
            stop = "target_seconds"
        at_checkpoint = len(nanos) % every == 0
        if stop is not None or at_checkpoint or len(nanos) % (500 if _hurry else 10) == 0:
            reporter.progress(reported, losses[reported:], nanos[reported:])
            reported = len(nanos)
            stop = stop or reporter.should_stop()
            if at_checkpoint and stop is None:
                reporter.checkpoint(
                    reported, digest(trainer.workload.trainable), chain.head() if with_evidence else None
                )
    return Outcome(len(nanos), sum(nanos), stop, losses[-1], chain.head() if with_evidence else None)


def digest(trainable: dict[str, bytearray]) -> str:
    """The tensor digest, computed as for the real adapter."""
    return tensor_digest((name, "F32", (VALUES,), memoryview(data)) for name, data in trainable.items())


def is_finite(trainable: dict[str, bytearray]) -> bool:
    """Always true: `pin` makes finite numbers only."""
    return True


def write(trainable: dict[str, bytearray], metadata: str, fd: int) -> int:
    """Write the adapter as safetensors into its memfd."""
    header, places, size = plan_layout(dict.fromkeys(trainable, ("F32", (VALUES,))), metadata)
    os.ftruncate(fd, size)
    with mmap.mmap(fd, size) as target, memoryview(target) as view:
        view[: len(header)] = header
        for name, data in trainable.items():
            view[places[name].start : places[name].end] = data
    return size


class Decoder:
    """Nothing to decode."""

    def __init__(self, files: dict[str, int]) -> None:
        self.files = files


@dataclass
class Evaluated:
    """As `evaluation.Evaluated`."""

    loss: float
    samples: int
    tokens: int
    answer: str | None


def evaluate(workload: Workload, plan: Any, decoder: Decoder) -> Evaluated:
    """A made-up loss, the same in both segments."""
    answer = None if plan.evaluation.question is None else "small"
    counts = plan.data.counts
    return Evaluated(2.0, 1 if counts is None else counts.held_out, 7, answer)


def rehearse(plan: Any, model_type: str) -> None:
    """Run once what would otherwise import modules or allocate memory only when it is needed."""
    hashlib.sha256(b"").hexdigest()
    sweep_python()
    sweep_heap()
    sweep_stack()
    trim()


def write_patterns(
    workload: Workload, optimizer: bytearray, last_row: int, fd: int, *, secret_weights: bool
) -> dict[str, int]:
    """Write windows of row, weights, adapter and moments."""
    target = mmap.mmap(fd, patterns.STORE_BYTES)
    with target, memoryview(target) as view, memoryview(workload.maps[WEIGHTS]) as weights:
        start = _window(weights)
        items = [
            (patterns.CANARY_ROW, memoryview(workload.row)[:32]),
            (patterns.WEIGHTS, weights[start : start + 32]),
            (patterns.ADAPTER, memoryview(workload.trainable[ADAPTER])[64:96]),
            (patterns.MOMENTS, memoryview(optimizer)[512:544]),
        ]
        counts = patterns.write(view, items)
        for _, item in items:
            item.release()
        return counts


def wipe(workload: Workload, trainer: Trainer) -> dict[str, Any]:
    """Overwrite, drop, unmap, sweep."""
    os.pwrite(_NOISE, bytes(8 * VALUES), 0)
    for buffer in (workload.row, workload.moments, *workload.trainable.values()):
        memoryview(buffer)[:] = bytes(len(buffer))
    unmapped = len(workload.maps)
    for mapping in workload.maps.values():
        mapping.close()
    workload.maps.clear()
    gc.collect()
    swept = sweep_python() + sweep_heap() + sweep_stack()
    trim()
    return {"unmapped": unmapped, "swept": swept}
