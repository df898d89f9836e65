"""Counting, dividing and padding samples, against slow references that go token by token."""

from __future__ import annotations

import random

import numpy as np
import pytest

from engine.errors import DataError
from engine.payload.chat.ragged import LEARNED, MARK, Ragged, ragged
from engine.payload.prepare import arrays
from engine.payload.prepare.arrays import counted, duplicates, first_equal, padded, split
from engine.worker.payload_names import IGNORED

Row = tuple[list[int], list[int]]
PAD = 7


def rows(count: int, seed: int, *, longest: int = 30, vocabulary: int = 1000) -> list[Row]:
    draw = random.Random(seed)  # noqa: S311
    made = []
    for _ in range(count):
        length = draw.choice([0, 1, 2, draw.randint(3, longest)])
        made.append(([draw.randrange(vocabulary) for _ in range(length)], [draw.randrange(4) for _ in range(length)]))
    return made


def reference(samples: list[Row], max_length: int) -> list[tuple[list[int], list[int], list[bool], int]]:
    """Input ids, labels, marks and length of each sample with something to learn, one token after the other."""
    found = []
    for ids, flags in samples:
        length = min(len(ids), max_length)
        if not any(flag & LEARNED for flag in flags[1:length]):
            continue
        inputs, labels, marks = [PAD] * max_length, [IGNORED] * max_length, [False] * max_length
        for place in range(length):
            inputs[place] = ids[place]
            labels[place] = ids[place] if flags[place] & LEARNED else IGNORED
            marks[place] = bool(flags[place] & MARK)
        found.append((inputs, labels, marks, length))
    return found


@pytest.mark.parametrize("max_length", [1, 2, 5, 16, 30, 64])
@pytest.mark.parametrize("seed", range(4))
def test_padding_is_that_of_the_slow_reference(max_length: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_BLOCK", 40)  # several blocks
    samples = rows(60, seed)
    chosen = np.array([place for place in range(60) if place % 3], np.int64)
    expected = reference([samples[place] for place in chosen.tolist()], max_length)
    if not expected:
        with pytest.raises(DataError) as failure:
            padded(ragged(samples), chosen, max_length, PAD)
        assert failure.value.code == "data_nothing_to_learn"
        return
    tokens = padded(ragged(samples), chosen, max_length, PAD)
    assert tokens.input_ids.dtype == tokens.labels.dtype == np.int32
    assert tokens.input_ids.tolist() == [one[0] for one in expected]
    assert tokens.labels.tolist() == [one[1] for one in expected]
    assert tokens.marks.tolist() == [one[2] for one in expected]
    assert tokens.lengths.tolist() == [one[3] for one in expected]
    assert tokens.dropped == 40 - len(expected)
    longer = [samples[place] for place in chosen.tolist() if len(samples[place][0]) > max_length]
    assert tokens.truncated == len(reference(longer, max_length))


@pytest.mark.parametrize("max_length", [1, 3, 17, 100])
def test_what_can_be_learned_is_counted_without_the_first_token(max_length: int) -> None:
    samples = rows(200, 9)
    figures = counted(ragged(samples), max_length)
    learned = [[flag & LEARNED for flag in flags] for _, flags in samples]
    assert figures.answers.tolist() == [sum(flags[1:]) for flags in learned]
    assert figures.answers_kept.tolist() == [sum(flags[1:max_length]) for flags in learned]
    assert figures.kept.tolist() == [min(len(flags), max_length) for flags in learned]


def test_ids_that_would_take_more_than_the_limit_are_refused_before_memory_is_taken() -> None:
    samples = ragged([([1, 2], [0, LEARNED])] * 5000)
    with pytest.raises(DataError) as failure:
        padded(samples, np.arange(5000), 131_072, PAD)
    assert failure.value.code == "data_too_large"


def test_duplicates_have_the_same_ids_and_nothing_else_counts() -> None:
    samples = ragged(
        [([1, 2], [0, 1]), ([1, 2, 3], [0, 1, 1]), ([1, 2], [1, 1]), ([], []), ([12], [1]), ([], []), ([1, 2], [0, 1])]
    )
    assert first_equal(samples).tolist() == [0, 1, 0, 3, 4, 3, 0]
    assert duplicates(first_equal(samples)) == 3


def different(count: int) -> Ragged:
    return ragged([([place, 1, 2], [0, LEARNED, LEARNED]) for place in range(count)])


@pytest.mark.parametrize(
    ("count", "percent", "held"), [(100, 10, 10), (100, 0.1, 1), (3, 50, 2), (2, 1, 1), (41, 5, 2)]
)
def test_a_split_holds_out_the_share_and_keeps_the_rest(count: int, percent: float, held: int) -> None:
    train, out = split(different(count), percent, 1)
    assert len(out) == held
    assert sorted([*train.tolist(), *out.tolist()]) == list(range(count))
    assert train.tolist() == sorted(train.tolist())


def test_a_split_depends_on_the_seed_and_on_nothing_else() -> None:
    first, again, other = (split(different(200), 10, seed)[1].tolist() for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", range(20))
def test_no_copy_of_a_held_out_sample_is_trained_on(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311
    contents = [draw.randrange(25) for _ in range(100)]
    samples = ragged([([content, 5], [0, LEARNED]) for content in contents])
    train, out = split(samples, 20, seed)
    assert 1 <= len(out) <= 20
    assert not {contents[place] for place in train} & {contents[place] for place in out}


def test_many_copies_are_held_out_whole_when_no_group_is_small_enough() -> None:
    train, out = split(ragged([([place % 2, 5], [0, LEARNED]) for place in range(9)]), 5, 3)
    assert out.tolist() == [1, 3, 5, 7]
    assert len(train) == 5


def test_what_is_dropped_at_the_length_is_never_held_out() -> None:
    short, long = ([1, 2], [0, LEARNED]), ([9, 9, 9, 9, 3], [0, 0, 0, 0, LEARNED])
    samples = ragged([short, *[([place, *long[0]], [0, *long[1]]) for place in range(50)], ([4, 2], [0, LEARNED])])
    for seed in range(10):
        assert set(split(samples, 50, seed, max_length=4)[1].tolist()) <= {0, 51}


@pytest.mark.parametrize("samples", [different(1), ragged([([1, 2], [0, LEARNED])] * 8)])
def test_a_split_that_leaves_one_side_empty_is_refused(samples: Ragged) -> None:
    with pytest.raises(DataError) as failure:
        split(samples, 50, 1)
    assert failure.value.code == "data_split_empty"


def test_samples_that_are_equal_once_they_are_cut_are_never_on_both_sides() -> None:
    samples = ragged([([1, 2, 3, 4, number], [0, 1, 1, 1, 1]) for number in range(20)] + [([7, 8, 9], [0, 1, 1])])
    train, held_out = split(samples, 10, 1, max_length=4)
    sides = [{tuple(samples.sample(int(index))[0][:4].tolist()) for index in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
