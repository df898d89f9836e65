"""A segment's per-step series as one compact blob: float32 losses and uint64 nanoseconds, without loss of a bit.

Layout: `GHS1`, the number of steps and the size of the first stream (u64 little-endian each), then two zlib
streams: losses and nanoseconds, each with its bytes shuffled (all first bytes, all second bytes, ...).
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from engine.errors import WireError

Losses = NDArray[np.float32]
Nanos = NDArray[np.uint64]

MAGIC: Final = b"GHS1"
MAX_STEPS: Final = 100_000_000
_HEADER: Final = struct.Struct("<4sQQ")
_LEVEL: Final = 6


def _shuffle(array: NDArray[Any]) -> bytes:
    width = array.dtype.itemsize
    return np.ascontiguousarray(array.view(np.uint8).reshape(-1, width).T).tobytes()


def _unshuffle(data: bytes, dtype: str, steps: int) -> NDArray[Any]:
    width = np.dtype(dtype).itemsize
    planes = np.frombuffer(data, np.uint8).reshape(width, steps)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)


def _inflate(stream: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stream, size + 1)
    except zlib.error as error:
        raise WireError("A stored series is damaged.", code="series_invalid") from error
    if len(data) != size or not inflater.eof or inflater.unused_data:
        raise WireError("A stored series does not have the length that it states.", code="series_invalid")
    return data


def pack_series(losses: Losses, nanos: Nanos) -> bytes:
    """One blob for the two series. Raises `ValueError` unless they are flat and equally long."""
    if losses.ndim != 1 or losses.shape != nanos.shape:
        raise ValueError(f"the series have the shapes {losses.shape} and {nanos.shape}")
    streams = [
        zlib.compress(_shuffle(np.ascontiguousarray(losses, dtype="<f4")), _LEVEL),
        zlib.compress(_shuffle(np.ascontiguousarray(nanos, dtype="<u8")), _LEVEL),
    ]
    return _HEADER.pack(MAGIC, losses.shape[0], len(streams[0])) + b"".join(streams)


def unpack_series(blob: bytes, *, max_steps: int = MAX_STEPS) -> tuple[Losses, Nanos]:
    """The losses and nanoseconds that `pack_series` packed, bit for bit.

    Raises `WireError` (`series_invalid`) for anything else, and for more than `max_steps` steps.
    """
    if len(blob) < _HEADER.size:
        raise WireError("A stored series is truncated.", code="series_invalid")
    magic, steps, first = _HEADER.unpack_from(blob)
    if magic != MAGIC or steps > max_steps or first > len(blob) - _HEADER.size:
        raise WireError("This is not a stored series.", code="series_invalid")
    split = _HEADER.size + first
    losses = _unshuffle(_inflate(blob[_HEADER.size : split], steps * 4), "<f4", steps)
    nanos = _unshuffle(_inflate(blob[split:], steps * 8), "<u8", steps)
    return losses, nanos
