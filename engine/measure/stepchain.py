"""The hash chain over measured steps: a protected trainer extends it at every step, and anyone can recompute it."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Final

CHAIN_TAG: Final = b"glasshouse/steps/1\0"
_STEP: Final = struct.Struct("<QfQ")


class StepChain:
    """SHA-256 over every measured step: `(index u64, loss bits f32, nanoseconds u64)`, little-endian."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(CHAIN_TAG)
        self.steps = 0

    def add(self, loss: float, nanos: int) -> None:
        """Append one step."""
        self._hash.update(_STEP.pack(self.steps, loss, nanos))
        self.steps += 1

    def head(self) -> str:
        """The digest over all steps so far, in hex."""
        return self._hash.copy().hexdigest()


def step_chain(losses: Iterable[float], nanos: Iterable[int]) -> str:
    """The head over two whole series."""
    chain = StepChain()
    for loss, duration in zip(losses, nanos, strict=True):
        chain.add(loss, duration)
    return chain.head()
