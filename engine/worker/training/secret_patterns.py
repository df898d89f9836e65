"""The patterns that a scan searches for in a trainer, and how the trainer wipes its secrets."""

from __future__ import annotations

import gc
import mmap
import time
from collections.abc import Iterator
from typing import Any, Final

from engine.worker.isolation import patterns
from engine.worker.isolation.wipe import free_math_buffers, sweep_heap, sweep_stack, trim
from engine.worker.payload_names import HELD_OUT_IDS
from engine.worker.training.model import Workload

WINDOW: Final = 32
SEARCHED: Final = 1 << 20
TRAINED_TENSORS: Final = 8
FROZEN_TENSORS: Final = 4


class _HostCopies:
    """Copies in host memory that patterns are taken from, zeroed afterwards."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []

    def view(self, tensor: Any, *, copied: bool = False) -> memoryview:
        """The bytes of a tensor; if that took a copy on the host, it is kept for `wipe`."""
        import torch

        host = tensor.detach().to("cpu").contiguous()
        if host.dtype == torch.bfloat16:
            host = host.view(torch.int16)
        if copied or host.data_ptr() != tensor.data_ptr():
            self._tensors.append(host)
        return memoryview(host.numpy()).cast("B")

    def wipe(self) -> None:
        """Zero every copy."""
        for tensor in self._tensors:
            tensor.zero_()
        self._tensors.clear()


def _window(data: memoryview, where: float) -> memoryview | None:
    """A window near the relative position `where` that is not padding; None if there is none."""
    last = len(data) - WINDOW
    if last < 0:
        return None
    start = int(last * where) // 8 * 8
    for offset in [*range(start, last + 1, 8), *range(0, start, 8)][:4096]:
        if patterns.usable(data[offset : offset + WINDOW]):
            return data[offset : offset + WINDOW]
    return None


def _candidates(
    workload: Workload, optimizer: Any, last_row: int, secret_weights: bool, scratch: _HostCopies
) -> Iterator[tuple[str, memoryview | None]]:
    import torch

    row = workload.tokens["input_ids"][last_row]
    yield patterns.CANARY_ROW, _window(scratch.view(row), 0.1)
    # The embedding reads the row as int64.
    yield patterns.CANARY_ROW, _window(scratch.view(row.to(torch.int64), copied=True), 0.1)
    if HELD_OUT_IDS in workload.tokens:
        held_out = workload.tokens[HELD_OUT_IDS][-1]
        yield patterns.CANARY_ROW, _window(scratch.view(held_out), 0.1)
        yield patterns.CANARY_ROW, _window(scratch.view(held_out.to(torch.int64), copied=True), 0.1)
    frozen = [parameter for parameter in workload.model.parameters() if not parameter.requires_grad]
    if secret_weights:
        for parameter in sorted(frozen, key=lambda item: -item.numel())[:FROZEN_TENSORS]:
            data = scratch.view(parameter.detach().flatten()[:SEARCHED])
            yield patterns.WEIGHTS, _window(data, 0.2)
            yield patterns.WEIGHTS, _window(data, 0.7)
    for parameter in list(workload.trainable.values())[:TRAINED_TENSORS]:
        yield patterns.ADAPTER, _window(scratch.view(parameter), 0.5)
        state = optimizer.state.get(parameter, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                yield patterns.MOMENTS, _window(scratch.view(state[name]), 0.5)


def write_patterns(
    workload: Workload, optimizer: Any, last_row: int, fd: int, *, secret_weights: bool
) -> dict[str, int]:
    """Write windows of the last trained row, of weights that came in the package, of the adapter and of the moments
    into the patterns memfd; returns how many of each class."""
    scratch = _HostCopies()
    try:
        with mmap.mmap(fd, patterns.STORE_BYTES) as target, memoryview(target) as view:
            candidates = _candidates(workload, optimizer, last_row, secret_weights, scratch)
            return patterns.write(view, ((name, data) for name, data in candidates if data is not None))
    finally:
        scratch.wipe()


def zero_in_place(trainer: Any) -> None:
    """Overwrite parameters, gradients and moments in place; only dropping them would leave their bytes on the heap."""
    import torch

    with torch.no_grad():
        for parameter in trainer.parameters:
            for tensor in (parameter.grad, *trainer.optimizer.state.get(parameter, {}).values()):
                if isinstance(tensor, torch.Tensor):
                    tensor.zero_()
            parameter.zero_()
        if trainer.last_ids is not None:
            trainer.last_ids.zero_()
            trainer.last_ids = None
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def zero_copies(workload: Workload) -> None:
    """Overwrite frozen weights that are no views of the payload's maps: on a GPU, of another type, or joined."""
    import torch

    maps = [(mapped.address, mapped.address + mapped.size) for mapped in workload.maps]
    with torch.no_grad():
        for tensor in (*workload.model.parameters(), *workload.model.buffers()):
            is_view = tensor.device.type == "cpu" and any(low <= tensor.data_ptr() < high for low, high in maps)
            if not is_view and tensor.is_contiguous():
                tensor.zero_()
    if workload.device == "cuda":
        torch.cuda.synchronize()


def wipe(workload: Workload, trainer: Any) -> dict[str, Any]:
    """The wipe, in order: zero in place, drop, unmap, free the maths library's buffers, sweep heap and stack, trim."""
    import torch

    began = time.perf_counter()
    zero_in_place(trainer)
    zero_copies(workload)
    trainer.optimizer.state.clear()
    trainer.optimizer.param_groups.clear()
    trainer.parameters.clear()
    trainer.order = None
    trainer.optimizer = trainer.schedule = None
    workload.trainable.clear()
    workload.tokens.clear()
    workload.model = None
    gc.collect()
    if workload.device == "cuda":
        torch.cuda.empty_cache()
    unmapped = 0
    for mapped in workload.maps:
        mapped.close()
        unmapped += 1
    math_buffers = free_math_buffers()
    sweep_heap()
    sweep_stack()
    trim()
    return {
        "unmapped": unmapped,
        "mathBuffers": math_buffers,
        "seconds": round(time.perf_counter() - began, 3),
        "deviceBytesLeft": int(torch.cuda.memory_allocated()) if workload.device == "cuda" else None,
    }
