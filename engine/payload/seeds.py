"""All randomness of a run follows from the plan's seed: three derived seeds, named streams, the sample order.

Streams are raw 64-bit words of numpy's Philox generator: the same on every platform and numpy version.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

ORDER_ENTRIES: Final = 65_536
"""The maximum number of entries, unless one epoch is longer: a longer run repeats the order."""


class Seeds(msgspec.Struct, frozen=True):
    """48 bits each: `init` for weights and adapter, `order` for the sample order, `noise` for everything else."""

    init: int
    order: int
    noise: int


def _digest(purpose: str, seed: int, name: str = "") -> bytes:
    parts = (b"glasshouse seed v1", purpose.encode(), seed.to_bytes(8, "little"), name.encode())
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()


def expand(seed: int) -> Seeds:
    """The three seeds derived from a plan's seed."""
    init, order, noise = (
        int.from_bytes(_digest(purpose, seed)[:6], "little") for purpose in ("init", "order", "noise")
    )
    return Seeds(init, order, noise)


def stream(seed: int, name: str) -> np.random.Philox:
    """The random stream named `name` under a seed."""
    return np.random.Philox(key=int.from_bytes(_digest("stream", seed, name)[:16], "little"))


def order_entries(samples: int, needed: int | None) -> int:
    """The length of the explicit order: whole epochs that cover `needed` entries (None if that is not known)."""
    most = max(1, ORDER_ENTRIES // samples)
    epochs = most if needed is None else min(most, math.ceil(needed / samples))
    return epochs * samples


def sample_order(seed: int, samples: int, entries: int) -> NDArray[np.int64]:
    """`entries` sample indices, int64: each epoch of `samples` entries is a separate permutation."""
    epochs = [
        np.argsort(stream(seed, f"epoch {epoch}").random_raw(samples), kind="stable").astype(np.int64)
        for epoch in range(entries // samples)
    ]
    return np.concatenate(epochs)
