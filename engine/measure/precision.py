"""How precisely one pair determines its own overhead: a moving-block bootstrap over the stored step times.

This is the precision within the two segments. It does not include the variation between processes, so it is not a
confidence interval of the overhead and must not be called one.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.measure.overhead import overhead_of_log_ratio

BLOCK_SECONDS: Final = 3.0
MIN_BLOCKS: Final = 3
RESAMPLES: Final = 2000
MAX_BLOCKS: Final = 4096
"""Blocks in a resampled series, 3.4 hours at 3 s each: a longer segment has longer blocks, so that work is bounded."""
_DRAWN_AT_ONCE: Final = 1 << 18
_COVERED: Final = (2.5, 97.5)


class Precision(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`half_width_pct`: half the width of the central 95 % of resampled overheads, in percent.

    `raw_blocks` and `protected_blocks` count the whole blocks of at least `block_seconds` in each segment.
    """

    half_width_pct: float
    block_seconds: float
    raw_blocks: int
    protected_blocks: int
    resamples: int


def _block_steps(nanos: NDArray[np.uint64], seconds: float) -> int:
    mean = float(nanos.sum()) / len(nanos)
    if mean <= 0:
        return len(nanos) + 1
    return max(1, math.ceil(seconds * 1e9 / mean), math.ceil(len(nanos) / MAX_BLOCKS))


def _resampled_means(nanos: NDArray[np.uint64], block: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """Mean step times of `resamples` series, each joined from blocks drawn at random, overlapping positions.

    They are drawn a few at a time, in constant memory; the result does not depend on how many.
    """
    edges = np.concatenate(([0.0], np.cumsum(nanos, dtype=np.float64)))
    sums = edges[block:] - edges[:-block]
    blocks = math.ceil(len(nanos) / block)
    generator = np.random.Philox(key=seed)
    means = np.empty(resamples)
    at_once = max(1, _DRAWN_AT_ONCE // blocks)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = generator.random_raw(count * blocks) % np.uint64(len(sums))
        means[start : start + count] = sums[drawn.reshape(count, blocks)].mean(axis=1) / block
    return means


def within_segment_precision(
    raw_nanos: NDArray[np.uint64],
    protected_nanos: NDArray[np.uint64],
    *,
    seed: int = 0,
    block_seconds: float = BLOCK_SECONDS,
    resamples: int = RESAMPLES,
) -> Precision | None:
    """The precision of one pair's overhead.

    None if a segment has fewer than three whole blocks, or step times of zero, which have no ratio. The arrays are step
    times in nanoseconds. A segment of more than `MAX_BLOCKS` blocks has longer ones. Raises `ValueError` for
    blocks shorter than 3 s: step times are correlated over seconds, so shorter blocks would understate the width.
    """
    if block_seconds < BLOCK_SECONDS:
        raise ValueError(f"blocks of {block_seconds} s are shorter than {BLOCK_SECONDS} s")
    if not (raw_nanos.any() and protected_nanos.any()):
        return None
    blocks = [_block_steps(nanos, block_seconds) for nanos in (raw_nanos, protected_nanos)]
    whole = [len(raw_nanos) // blocks[0], len(protected_nanos) // blocks[1]]
    if min(whole) < MIN_BLOCKS:
        return None
    raw = _resampled_means(raw_nanos, blocks[0], resamples, 2 * seed)
    protected = _resampled_means(protected_nanos, blocks[1], resamples, 2 * seed + 1)
    if not (raw.all() and protected.all()):
        return None
    low, high = (overhead_of_log_ratio(float(d)) for d in np.percentile(np.log(protected / raw), _COVERED))
    return Precision(
        half_width_pct=(high - low) / 2,
        block_seconds=block_seconds,
        raw_blocks=whole[0],
        protected_blocks=whole[1],
        resamples=resamples,
    )
