"""Token ids of samples as a run needs them: counted, told apart, divided, cut and padded. No loop over tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.payload.chat.ragged import LEARNED, MARK, Ragged
from engine.payload.prepare.tokens import MAX_TOKEN_BYTES, Tokens
from engine.payload.seeds import stream
from engine.worker.payload_names import IGNORED

_BLOCK: Final = 1 << 21
"""Values that are padded at once: the index of a block takes 16 MiB."""


class Counted(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """For each sample, int64 [samples]: its tokens, those `kept` after the cut, and how many can be learned.

    `answers` are learned from the whole sample, `answers_kept` from what is kept; a sample with none is dropped.
    """

    lengths: NDArray[np.int64]
    kept: NDArray[np.int64]
    answers: NDArray[np.int64]
    answers_kept: NDArray[np.int64]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Where something can be learned after the cut."""
        return self.answers_kept > 0

    @property
    def cut(self) -> NDArray[np.bool_]:
        """Where tokens are lost although the sample is used."""
        return self.usable & (self.lengths > self.kept)


def counted(samples: Ragged, max_length: int) -> Counted:
    """What is left of each sample after a cut to `max_length` tokens."""
    lengths = samples.lengths
    kept = np.minimum(lengths, max_length)
    return Counted(
        lengths=lengths, kept=kept, answers=_learnable(samples, lengths), answers_kept=_learnable(samples, kept)
    )


def _learnable(samples: Ragged, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The learned tokens among the first `lengths` of each sample, without its first token: nothing predicts that."""
    counts = np.zeros(len(lengths), np.int64)
    some = np.flatnonzero(lengths > 1)
    if not len(some):
        return counts
    starts = (samples.ends - samples.lengths)[some]
    bounds = np.stack([starts + 1, starts + lengths[some]], axis=1).ravel()
    learned = samples.flags & np.uint8(LEARNED)
    if bounds[-1] == len(learned):
        bounds = bounds[:-1]
    counts[some] = np.add.reduceat(learned, bounds, dtype=np.int64)[::2]
    return counts


def first_equal(samples: Ragged, max_length: int | None = None) -> NDArray[np.int64]:
    """For each sample the index of the first one with the same ids, int64 [samples]: its own if it is no duplicate."""
    digests = np.frombuffer(b"".join(_digests(samples, max_length)), np.dtype("V16"))
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    return first.astype(np.int64)[group.reshape(-1)]


def _digests(samples: Ragged, max_length: int | None) -> Iterator[bytes]:
    ids, start = np.ascontiguousarray(samples.ids).view(np.uint8).data, 0
    for end in samples.ends.tolist():
        last = end if max_length is None else min(end, start + max_length)
        yield hashlib.blake2b(ids[4 * start : 4 * last], digest_size=16).digest()
        start = end


def duplicates(equal: NDArray[np.int64]) -> int:
    """How many samples repeat an earlier one, from `first_equal`."""
    return int((equal != np.arange(len(equal))).sum())


def split(
    samples: Ragged, percent: float, seed: int, *, max_length: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices to train on and those held out, both ascending; together they are all samples.

    About `percent` of the usable samples are held out, drawn by the seed. Samples that are the same up to `max_length`
    tokens stay together, so that no held-out one is trained on. Those dropped at that length are never held out.

    Raises `DataError` (`data_split_empty`) unless at least one usable sample is on each side.
    """
    usable = counted(samples, max_length or max(1, int(samples.lengths.max(initial=0)))).usable
    equal = first_equal(samples, max_length)
    groups, sizes = np.unique(equal[usable], return_counts=True)
    wanted = max(1, round(int(usable.sum()) * percent / 100))
    if len(groups) < 2:
        raise DataError(
            "There are too few different samples to hold some of them out.",
            "Give more samples, or leave out --eval-split.",
            code="data_split_empty",
        )
    order = np.argsort(stream(seed, "held-out").random_raw(len(groups)), kind="stable")
    drawn = _draw(sizes[order].tolist(), wanted)
    if not drawn:  # every sample is repeated more often than samples are wanted
        drawn = [int(np.argmin(sizes[order]))]
    held = usable & np.isin(equal, groups[order[drawn]])
    return np.flatnonzero(~held), np.flatnonzero(held)


def _draw(sizes: list[int], wanted: int) -> list[int]:
    """The first groups in order that fit together into `wanted` samples."""
    drawn = []
    for place, size in enumerate(sizes):
        if size <= wanted:
            drawn.append(place)
            wanted -= size
        if not wanted:
            break
    return drawn if len(drawn) < len(sizes) else drawn[:-1]


def usable_rows(samples: Ragged, indices: NDArray[np.int64], max_length: int) -> NDArray[np.int64]:
    """Those of `indices` at which something can be learned after the cut, int64.

    Raises `DataError`: `data_too_large` above 4 GiB of ids and labels, `data_nothing_to_learn` if none is left.
    """
    return _usable_rows(counted(samples, max_length), indices, max_length)


def _usable_rows(figures: Counted, indices: NDArray[np.int64], max_length: int) -> NDArray[np.int64]:
    rows = indices[figures.usable[indices]]
    if not len(rows):
        raise DataError(
            f"No sample has a part of an answer within its first {max_length} tokens, so nothing can be learned.",
            "Give a larger --max-length or shorter prompts.",
            code="data_nothing_to_learn",
        )
    if 2 * 4 * len(rows) * max_length > MAX_TOKEN_BYTES:
        raise DataError(
            f"{len(rows)} samples of {max_length} tokens exceed the limit of a run.",
            "Give a smaller file or a smaller --max-length.",
            code="data_too_large",
        )
    return rows


def padded(samples: Ragged, indices: NDArray[np.int64], max_length: int, pad: int) -> Tokens:
    """The samples at `indices`, cut or padded to `max_length`, without those of which nothing can be learned.

    Raises `DataError` as `usable_rows`.
    """
    figures = counted(samples, max_length)
    rows = _usable_rows(figures, indices, max_length)
    shape = (len(rows), max_length)
    input_ids, labels = np.empty(shape, np.int32), np.empty(shape, np.int32)
    marks, lengths = np.empty(shape, np.bool_), figures.kept[rows]
    starts = (samples.ends - figures.lengths)[rows]
    places = np.arange(max_length)
    block = max(1, _BLOCK // max_length)
    for first in range(0, len(rows), block):
        part = slice(first, first + block)
        inside = places < lengths[part, None]
        at = np.minimum(starts[part, None] + places, len(samples.ids) - 1)
        ids, flags = samples.ids[at], samples.flags[at]
        input_ids[part] = np.where(inside, ids, np.int32(pad))
        labels[part] = np.where(inside & (flags & LEARNED != 0), ids, np.int32(IGNORED))
        marks[part] = inside & (flags & MARK != 0)
    return Tokens(
        input_ids=input_ids,
        labels=labels,
        marks=marks,
        lengths=lengths,
        dropped=len(indices) - len(rows),
        truncated=int(figures.cut[rows].sum()),
    )
