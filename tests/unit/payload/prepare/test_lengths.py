"""The spread of lengths, and the length that is chosen from it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from engine.errors import DataError
from engine.payload.prepare.lengths import ChosenLength, auto_length, lengths_of


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 100, 1001])
def test_percentiles_are_lengths_of_samples_by_nearest_rank(count: int) -> None:
    draw = random.Random(count)  # noqa: S311
    lengths = [draw.randint(1, 5000) for _ in range(count)]
    ordered = sorted(lengths)
    found = lengths_of(np.array(lengths, np.int64))
    ranks = [ordered[-(-percent * count // 100) - 1] for percent in (50, 90, 95, 99)]
    assert [found.p50, found.p90, found.p95, found.p99] == ranks
    assert (found.min, found.max) == (ordered[0], ordered[-1])


@pytest.mark.parametrize(
    ("longest", "model", "memory", "chosen"),
    [
        (500, 2048, None, ChosenLength(504, "the longest sample")),
        (504, 2048, 4096, ChosenLength(504, "the longest sample")),
        (1, 2048, None, ChosenLength(8, "the longest sample")),
        (1025, 2048, None, ChosenLength(1088, "the longest sample")),
        (510, 511, None, ChosenLength(511, "the longest sample")),
        (600, 512, None, ChosenLength(512, "the model's limit; 1 of 3 samples are longer")),
        (600, 512, 300, ChosenLength(296, "memory; 1 of 3 samples are longer")),
        (600, 5, 5, ChosenLength(5, "the model's limit; 3 of 3 samples are longer")),
        (600, None, None, ChosenLength(600, "the longest sample")),
        (200_000, None, None, ChosenLength(131_072, "the limit of a run; 1 of 3 samples are longer")),
    ],
)
def test_the_length_follows_the_longest_sample_as_far_as_the_limits_allow(
    longest: int, model: int | None, memory: int | None, chosen: ChosenLength
) -> None:
    lengths = np.array([longest, min(longest, 6), min(longest, 7)], np.int64)
    assert auto_length(lengths, model, memory) == chosen


def test_memory_for_less_than_two_tokens_is_refused() -> None:
    with pytest.raises(DataError) as failure:
        auto_length(np.array([10], np.int64), 512, 1)
    assert failure.value.code == "memory_too_small"
