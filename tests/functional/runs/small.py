"""Training without torch: the same stages on plain buffers, in place of `engine.worker.training` in a test's bundle.

Everything else in that bundle is the shipped worker: its trainer, its fences, its scanner, its key processes.
"""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import time
from dataclasses import dataclass, field
from typing import Any

from engine.worker.isolation import patterns
from engine.worker.isolation.wipe import sweep_heap, sweep_python, sweep_stack, trim

ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
TOKENS = "tokens.safetensors"
WEIGHTS = "weights.safetensors"
FILES = (TOKENS, WEIGHTS)
WINDOW = 64


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
    """As the loop's own."""

    steps: int
    elapsed_ns: int
    stop_reason: str
    final_loss: float
    step_chain: str | None = None
    last_row: int = 0


class Trainer:
    """The workload, and an optimizer in name."""

    def __init__(self, workload: Workload, plan: Any) -> None:
        self.workload = workload
        self.plan = plan
        self.optimizer = workload.moments


def pin(noise_seed: int) -> None:
    """Nothing to pin."""


def recorded(device: str, dtype: str) -> dict[str, Any]:
    """As much as there is."""
    return {"device": device, "dtype": dtype}


def import_architecture(model_type: str) -> None:
    """Nothing to import."""


def load(plan: Any, files: dict[str, int]) -> Workload:
    """Map the payload read-only."""
    made = Workload({name: mmap.mmap(fd, 0, prot=mmap.PROT_READ) for name, fd in files.items()})
    made.trainable["lora"] = bytearray(4096)
    return made


def _fill(workload: Workload) -> None:
    """Plaintext and what is learnt from it, without a copy that nobody wipes."""
    with memoryview(workload.maps[TOKENS]) as tokens, memoryview(workload.row) as row:
        row[:] = tokens[:WINDOW]
    for offset, buffer in ((0, workload.trainable["lora"]), (4096, workload.moments)):
        os.preadv(_RANDOM, [buffer], offset)


_RANDOM = os.memfd_create("small")
os.write(_RANDOM, os.urandom(8192))


def warm_up(trainer: Trainer, reporter: Any) -> None:
    """The first step."""
    _fill(trainer.workload)


def measure(trainer: Trainer, reporter: Any, *, with_evidence: bool) -> Outcome:
    """Steps of five milliseconds, until the target or a stop; each is reported with the time it took."""
    target = trainer.plan.target
    nanos: list[int] = []
    told, stop = 0, None
    while stop is None:
        began = time.perf_counter_ns()
        time.sleep(0.005)
        nanos.append(time.perf_counter_ns() - began)
        if target.steps is not None and len(nanos) >= target.steps:
            stop = "step_budget"
        elif target.seconds is not None and sum(nanos) > target.seconds * 1e9:
            stop = "target_seconds"
        if stop is not None or len(nanos) % 10 == 0:
            reporter.progress(told, [1.0] * (len(nanos) - told), nanos[told:])
            told = len(nanos)
            stop = stop or reporter.should_stop()
    return Outcome(len(nanos), sum(nanos), stop, 1.0)


def digest(trainable: dict[str, bytearray]) -> str:
    """SHA-256 of the adapter."""
    return hashlib.sha256(trainable["lora"]).hexdigest()


def is_finite(trainable: dict[str, bytearray]) -> bool:
    """Bytes are."""
    return True


def write(trainable: dict[str, bytearray], metadata: str, fd: int) -> int:
    """The adapter's bytes into its memfd."""
    os.ftruncate(fd, len(trainable["lora"]))
    with mmap.mmap(fd, 0) as target, memoryview(target) as view:
        view[:] = trainable["lora"]
        return len(view)


def rehearse(plan: Any, model_type: str) -> None:
    """Whatever is imported or started late, once."""
    hashlib.sha256(b"").hexdigest()
    sweep_python()
    sweep_heap()
    sweep_stack()
    trim()


def write_patterns(
    workload: Workload, optimizer: bytearray, last_row: int, fd: int, *, secret_weights: bool
) -> dict[str, int]:
    """Windows of row, weights, adapter and moments."""
    target = mmap.mmap(fd, patterns.STORE_BYTES)
    with target, memoryview(target) as view, memoryview(workload.maps[WEIGHTS]) as weights:
        items = [
            (patterns.CANARY_ROW, memoryview(workload.row)[:32]),
            (patterns.WEIGHTS, weights[100:132]),
            (patterns.ADAPTER, memoryview(workload.trainable["lora"])[64:96]),
            (patterns.MOMENTS, memoryview(optimizer)[512:544]),
        ]
        found = patterns.write(view, items)
        for _, item in items:
            item.release()
        return found


def wipe(workload: Workload, trainer: Trainer) -> dict[str, Any]:
    """Overwrite, drop, unmap, sweep."""
    os.pwrite(_RANDOM, bytes(8192), 0)
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
