"""The trained adapter: its tensor digest, and its file, written directly into a map."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from typing import Any

from engine.measure.digest import tensor_digest
from engine.measure.safetensors_header import plan_layout


def _on_host(parameter: Any) -> Any:
    import torch

    return parameter.detach().to(device="cpu", dtype=torch.float32).contiguous()


def _bytes_of(tensor: Any) -> memoryview:
    return memoryview(tensor.numpy()).cast("B")


def digest(trainable: Mapping[str, Any]) -> str:
    """`tensor_digest` of the adapter as it is now: equal in both segments if they did the same work."""
    items = []
    for name, parameter in trainable.items():
        tensor = _on_host(parameter)
        items.append((name, "F32", tuple(tensor.shape), _bytes_of(tensor)))
    return tensor_digest(items)


def is_finite(trainable: Mapping[str, Any]) -> bool:
    """True when every value of the adapter is finite."""
    import torch

    return all(bool(torch.isfinite(parameter).all()) for parameter in trainable.values())


def write(trainable: Mapping[str, Any], metadata: str, fd: int) -> int:
    """Write the adapter as safetensors into an empty file or memfd; returns its size in bytes."""
    header, places, size = plan_layout(
        {name: ("F32", tuple(parameter.shape)) for name, parameter in trainable.items()}, metadata
    )
    os.ftruncate(fd, size)
    with mmap.mmap(fd, size) as target:
        target[: len(header)] = header
        for name, parameter in trainable.items():
            place = places[name]
            tensor = _on_host(parameter)
            with memoryview(target) as view:
                view[place.start : place.end] = _bytes_of(tensor)
        target.flush()
    return size
