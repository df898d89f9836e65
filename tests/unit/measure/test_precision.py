from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.measure.precision import MAX_BLOCKS, within_segment_precision


def step_times(seconds: float, *, seed: int, mean_ms: float = 10.0, sd_pct: float = 8.0) -> NDArray[np.uint64]:
    """Step times with a slow drift, which correlates them over about a second."""
    rng = np.random.default_rng(seed)
    steps = round(seconds * 1000 / mean_ms)
    noise = np.convolve(rng.normal(size=steps + 99), np.ones(100) / 10, mode="valid")
    return np.asarray(mean_ms * 1e6 * (1 + noise * sd_pct / 100), np.uint64)


def test_the_same_input_gives_the_same_figure() -> None:
    raw, protected = step_times(30, seed=1), step_times(30, seed=2)
    assert within_segment_precision(raw, protected, seed=5) == within_segment_precision(raw, protected, seed=5)
    assert within_segment_precision(raw, protected, seed=5) != within_segment_precision(raw, protected, seed=6)


def test_the_published_figure_does_not_depend_on_how_many_series_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw, protected = step_times(120, seed=1), step_times(120, seed=2)
    whole = within_segment_precision(raw, protected, seed=7)
    assert whole is not None
    # The figure as earlier versions published it, which drew all series at once.
    assert whole.half_width_pct == pytest.approx(1.9561879346516933, abs=1e-12)
    for at_once in (1, 41, 1000, 1 << 30):
        monkeypatch.setattr("engine.measure.precision._DRAWN_AT_ONCE", at_once)
        assert within_segment_precision(raw, protected, seed=7) == whole


@pytest.mark.parametrize("steps", [12_000, 400_000])
def test_resampling_takes_constant_memory_however_long_and_slow_the_steps(steps: int) -> None:
    slow = np.full(steps, 4_000_000_000, np.uint64)
    slow[::7] *= np.uint64(3)
    tracemalloc.start()
    try:
        precision = within_segment_precision(slow, slow[::-1].copy(), resamples=200)
        assert tracemalloc.get_traced_memory()[1] < 16 * steps + 32 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert precision is not None
    assert precision.raw_blocks <= MAX_BLOCKS


def test_identical_constant_steps_have_no_width() -> None:
    steady = np.full(2000, 10_000_000, np.uint64)
    precision = within_segment_precision(steady, steady)
    assert precision is not None
    assert precision.half_width_pct == pytest.approx(0, abs=1e-9)
    assert (precision.raw_blocks, precision.protected_blocks) == (6, 6)


def test_blocks_last_at_least_three_seconds() -> None:
    precision = within_segment_precision(step_times(60, seed=3), step_times(60, seed=4, mean_ms=25))
    assert precision is not None
    assert precision.raw_blocks in (19, 20)
    assert precision.protected_blocks in (19, 20)


def test_the_half_width_matches_the_spread_over_many_independent_pairs() -> None:
    widths, overheads = [], []
    for trial in range(60):
        raw, protected = step_times(60, seed=2 * trial), step_times(60, seed=2 * trial + 1)
        precision = within_segment_precision(raw, protected, resamples=400)
        assert precision is not None
        widths.append(precision.half_width_pct)
        overheads.append((1 - float(raw.sum()) / float(protected.sum())) * 100)
    assert float(np.mean(widths)) == pytest.approx(1.96 * float(np.std(overheads)), rel=0.35)


def test_longer_segments_are_more_precise() -> None:
    short = within_segment_precision(step_times(15, seed=8), step_times(15, seed=9))
    long = within_segment_precision(step_times(240, seed=8), step_times(240, seed=9))
    assert short is not None
    assert long is not None
    assert long.half_width_pct < short.half_width_pct / 2


@pytest.mark.parametrize("seconds", [0, 1, 8])
def test_a_segment_of_fewer_than_three_blocks_has_no_precision(seconds: int) -> None:
    assert within_segment_precision(step_times(30, seed=1), step_times(seconds, seed=2)) is None


def test_shorter_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter than"):
        within_segment_precision(step_times(30, seed=1), step_times(30, seed=2), block_seconds=1.0)
