from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.payload.seeds import ORDER_ENTRIES, expand, order_entries, sample_order, stream


def test_the_three_seeds_differ_and_follow_from_the_one() -> None:
    seeds = expand(20260517)
    assert seeds == expand(20260517)
    assert len({seeds.init, seeds.order, seeds.noise}) == 3
    assert seeds != expand(20260518)
    assert max(seeds.init, seeds.order, seeds.noise) < 2**48


def test_random_values_are_the_same_on_every_platform() -> None:
    seeds = expand(0)
    assert (seeds.init, seeds.order, seeds.noise) == (92852770838090, 109436213761225, 201164807502888)
    assert stream(1, "a").random_raw(2).tolist() == [13129051219021793079, 7047237108048085807]
    assert sample_order(3, 5, 10).tolist() == [1, 4, 0, 2, 3, 3, 2, 0, 4, 1]


def test_streams_of_two_names_have_nothing_in_common() -> None:
    assert not set(stream(1, "a").random_raw(1000).tolist()) & set(stream(1, "b").random_raw(1000).tolist())


@given(st.integers(0, 2**48 - 1), st.integers(1, 60), st.integers(1, 5))
def test_each_epoch_is_a_permutation_of_all_samples(seed: int, samples: int, epochs: int) -> None:
    order = sample_order(seed, samples, samples * epochs)
    assert order.dtype == np.int64
    assert (np.sort(order.reshape(epochs, samples), axis=1) == np.arange(samples)).all()


def test_two_epochs_are_shuffled_independently() -> None:
    first, second = sample_order(1, 100, 200).reshape(2, 100)
    assert first.tolist() != second.tolist()
    assert first.tolist() != list(range(100))


def test_a_longer_order_begins_with_the_shorter_one() -> None:
    assert sample_order(1, 100, 300)[:100].tolist() == sample_order(1, 100, 100).tolist()


@pytest.mark.parametrize(
    ("samples", "wanted", "entries"),
    [
        (761, 1900, 2283),
        (761, 761, 761),
        (761, 1, 761),
        (761, 10**8, ORDER_ENTRIES // 761 * 761),
        (761, None, ORDER_ENTRIES // 761 * 761),
        (100_000, None, 100_000),
        (100_000, 200_000, 100_000),
        (1, None, ORDER_ENTRIES),
    ],
)
def test_an_order_has_whole_epochs_and_an_upper_bound(samples: int, wanted: int | None, entries: int) -> None:
    assert order_entries(samples, wanted) == entries
