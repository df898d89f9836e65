"""Synthetic samples in the shape of real ones: what a pair trains on when its data must not be shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.payload.prepare.tokens import Tokens
from engine.payload.seeds import stream
from engine.worker.payload_names import IGNORED


def stand_in(tokens: Tokens, plain_ids: NDArray[np.int64], seed: int) -> Tokens:
    """Samples of the same number, lengths and masks, with ids drawn from `plain_ids` by the seed.

    Padding and turn marks are kept; every other id depends on seed and position alone, never on the data. Raises
    `DataError` (`tokenizer_invalid`) if `plain_ids` is empty.
    """
    if not len(plain_ids):
        raise DataError("The tokenizer has only control tokens.", "Give another model.", code="tokenizer_invalid")
    count = tokens.input_ids.size
    drawn = plain_ids[stream(seed, "stand-in").random_raw(count) % np.uint64(len(plain_ids))]
    drawn = drawn.astype(np.int32).reshape(tokens.input_ids.shape)
    padding = np.arange(tokens.input_ids.shape[1]) >= tokens.lengths[:, None]
    input_ids = np.where(tokens.marks | padding, tokens.input_ids, drawn)
    return Tokens(
        input_ids=input_ids,
        labels=np.where(tokens.labels == IGNORED, np.int32(IGNORED), input_ids),
        marks=tokens.marks,
        lengths=tokens.lengths,
        dropped=tokens.dropped,
        truncated=tokens.truncated,
    )
