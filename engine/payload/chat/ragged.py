"""Token ids of many samples of different lengths, in three flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

LEARNED: Final = 1
"""Flag of a token that the model is trained to produce."""
MARK: Final = 2
"""Flag of a token that the template wrote and not the data: a control token. A stand-in keeps it."""


class Ragged(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """`ids` int32 [tokens] and `flags` uint8 [tokens] of all samples; `ends` int64 [samples]: where each one ends."""

    ids: NDArray[np.int32]
    flags: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each sample."""
        return np.diff(self.ends, prepend=np.int64(0))

    def sample(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """The ids and flags of one sample."""
        start = int(self.ends[index - 1]) if index else 0
        return self.ids[start : int(self.ends[index])], self.flags[start : int(self.ends[index])]


def ragged(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Ragged:
    """From (ids, flags) a sample."""
    ends = np.cumsum([len(ids) for ids, _ in rows], dtype=np.int64)
    return Ragged(
        ids=np.array([token for ids, _ in rows for token in ids], np.int32),
        flags=np.array([flag for _, flags in rows for flag in flags], np.uint8),
        ends=ends,
    )


def joined(parts: Sequence[Ragged]) -> Ragged:
    """The samples of all parts, in order."""
    sizes = np.cumsum([0, *(len(part.ids) for part in parts)])
    return Ragged(
        ids=np.concatenate([part.ids for part in parts]),
        flags=np.concatenate([part.flags for part in parts]),
        ends=np.concatenate([part.ends + size for part, size in zip(parts, sizes, strict=False)]),
    )
