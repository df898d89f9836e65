"""Token ids of samples of one length, as a run trains on them."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

MAX_TOKEN_BYTES: Final = 4 * 1024**3


class Tokens(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """`input_ids` and `labels` are int32 [samples, max_length]; `marks` is True where an id is a control token.

    `lengths` counts each sample's tokens without the padding. `dropped` counts samples with nothing left to learn,
    `truncated` those that were cut.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    marks: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    dropped: int
    truncated: int
