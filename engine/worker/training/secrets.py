"""What the scan looks for in a trainer, and how the trainer wipes it."""

from __future__ import annotations

import base64
import gc
import os
import time
from typing import Any, Final

from engine.wire import canonical
from engine.worker.isolation.wipe import free_math_buffers, sweep_heap, trim
from engine.worker.training.model import Workload

WINDOW: Final = 32
MIN_DISTINCT: Final = 6


def _window(data: bytes, where: float, distinct: int = MIN_DISTINCT) -> bytes | None:
    """A window of `data` near the relative place `where` that is not padding; None when there is none."""
    last = len(data) - WINDOW
    if last < 0:
        return None
    start = int(last * where) // 8 * 8
    for offset in [*range(start, last + 1, 8), *range(0, start, 8)][:4096]:
        window = data[offset : offset + WINDOW]
        if len(set(window)) >= distinct:
            return window
    return None


def _host_bytes(tensor: Any) -> bytes:
    raw = tensor.detach().to("cpu").contiguous()
    if raw.dtype.is_floating_point and raw.element_size() == 2:
        import torch

        raw = raw.view(torch.int16)
    data: bytes = raw.numpy().tobytes()
    return data


def collect(workload: Workload, optimizer: Any, last_row: int) -> list[tuple[str, bytes]]:
    """Patterns by class: the last trained row, weights that came in the package, the adapter, the moments."""
    import torch

    patterns: list[tuple[str, bytes | None]] = []
    row = workload.tokens["input_ids"][last_row]
    patterns.append(("canary_row", _window(_host_bytes(row), 0.1)))
    patterns.append(("canary_row", _window(_host_bytes(row.to(torch.int64)), 0.1)))
    frozen = [parameter for parameter in workload.model.parameters() if not parameter.requires_grad]
    for parameter in sorted(frozen, key=lambda item: -item.numel())[:4]:
        data = _host_bytes(parameter.flatten()[: 1 << 20])
        patterns.extend(("weights", _window(data, where)) for where in (0.2, 0.7))
    for parameter in list(workload.trainable.values())[:8]:
        patterns.append(("adapter", _window(_host_bytes(parameter), 0.5)))
        state = optimizer.state.get(parameter, {})
        patterns.extend(
            ("moments", _window(_host_bytes(state[name]), 0.5)) for name in ("exp_avg", "exp_avg_sq") if name in state
        )
    return [(name, window) for name, window in patterns if window is not None]


def write_patterns(workload: Workload, optimizer: Any, last_row: int, fd: int) -> int:
    """Write the patterns for the scanner into a memfd, which it empties; returns how many there are."""
    found = collect(workload, optimizer, last_row)
    os.ftruncate(fd, 0)
    os.pwrite(
        fd,
        canonical([{"class": name, "bytes": base64.b64encode(window).decode()} for name, window in found]),
        0,
    )
    return len(found)


def zero_in_place(trainer: Any) -> None:
    """Overwrite parameters, gradients and moments where they lie; dropping alone would leave them on the heap."""
    import torch

    with torch.no_grad():
        for parameter in trainer.parameters:
            for tensor in (parameter.grad, *trainer.optimizer.state.get(parameter, {}).values()):
                if isinstance(tensor, torch.Tensor):
                    tensor.zero_()
            parameter.zero_()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def wipe(workload: Workload, trainer: Any) -> dict[str, Any]:
    """The wipe ladder: zero in place, drop, unmap, free the maths library's buffers, sweep, trim."""
    import torch

    began = time.perf_counter()
    zero_in_place(trainer)
    if workload.device == "cuda":
        with torch.no_grad():
            for parameter in workload.model.parameters():
                parameter.zero_()
        torch.cuda.synchronize()
    trainer.optimizer.state.clear()
    trainer.optimizer.param_groups.clear()
    trainer.parameters.clear()
    trainer.order = None
    trainer.optimizer = None
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
    trim()
    return {
        "unmapped": unmapped,
        "mathBuffers": math_buffers,
        "seconds": round(time.perf_counter() - began, 3),
        "deviceBytesLeft": int(torch.cuda.memory_allocated()) if workload.device == "cuda" else None,
    }
