from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.measure.overhead import (
    log_ratio,
    matches_published,
    overhead_of_log_ratio,
    overhead_pct,
    pair_overhead_pct,
    rate,
)
from engine.system.resources import data_path

PUBLISHED: dict[str, Any] = json.loads(data_path("published_rows.json").read_bytes())
ROWS: list[dict[str, Any]] = [*PUBLISHED["loraRows"], *PUBLISHED["mlpRows"]]


def recomputed(row: dict[str, Any]) -> float:
    if row["workload"] == "mlp":
        return overhead_pct(row["rawEpochsPerSec"], row["protectedEpochsPerSec"])
    return pair_overhead_pct(
        raw_steps=row["rawSteps"],
        raw_elapsed_sec=row["rawElapsedSec"],
        protected_steps=row["protectedSteps"],
        protected_elapsed_sec=row["protectedElapsedSec"],
    )


def test_seventeen_rows_are_published() -> None:
    assert (len(PUBLISHED["loraRows"]), len(PUBLISHED["mlpRows"])) == (8, 9)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['label']} {row['overheadPct']}")
def test_a_published_overhead_recomputes_to_two_decimals(row: dict[str, Any]) -> None:
    assert matches_published(row["overheadPct"], recomputed(row))
    assert not matches_published(row["overheadPct"] + 0.01, recomputed(row))


def test_a_slower_protected_segment_has_a_positive_overhead() -> None:
    assert overhead_pct(100.0, 99.0) == pytest.approx(1.0)
    assert overhead_pct(100.0, 101.0) == pytest.approx(-1.0)


@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6))
def test_the_log_ratio_of_times_gives_the_same_overhead(raw: float, protected: float) -> None:
    d = log_ratio(raw, protected)
    assert d == pytest.approx(math.log(raw / protected), abs=1e-9)
    assert overhead_of_log_ratio(d) == pytest.approx(overhead_pct(raw, protected), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("steps", "elapsed"), [(0, 1.0), (1, 0.0), (1, math.inf), (math.nan, 1.0), (-1, 1.0)])
def test_no_rate_without_steps_and_time(steps: float, elapsed: float) -> None:
    with pytest.raises(ValueError, match="no rate"):
        rate(steps, elapsed)


@pytest.mark.parametrize(("raw", "protected"), [(0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_no_overhead_without_two_rates(raw: float, protected: float) -> None:
    with pytest.raises(ValueError, match="no overhead"):
        overhead_pct(raw, protected)
