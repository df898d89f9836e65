"""The published definition of overhead, and its log-ratio form."""

from __future__ import annotations

import math


def rate(steps: float, elapsed_sec: float) -> float:
    """Steps per second. Raises `ValueError` unless both are finite and above zero."""
    if not (math.isfinite(steps) and math.isfinite(elapsed_sec) and steps > 0 and elapsed_sec > 0):
        raise ValueError(f"{steps} steps in {elapsed_sec} s have no rate")
    return steps / elapsed_sec


def _speed_ratio(raw_rate: float, protected_rate: float) -> float:
    if not (math.isfinite(raw_rate) and math.isfinite(protected_rate) and raw_rate > 0 and protected_rate > 0):
        raise ValueError(f"the rates {raw_rate} and {protected_rate} have no overhead")
    return protected_rate / raw_rate


def overhead_pct(raw_rate: float, protected_rate: float) -> float:
    """`(1 - protected / raw) * 100`, in percent, unrounded. A negative value is noise, not a speed-up."""
    return (1 - _speed_ratio(raw_rate, protected_rate)) * 100


def pair_overhead_pct(
    *, raw_steps: float, raw_elapsed_sec: float, protected_steps: float, protected_elapsed_sec: float
) -> float:
    """The overhead of one pair from its steps and elapsed seconds, in percent."""
    return overhead_pct(rate(raw_steps, raw_elapsed_sec), rate(protected_steps, protected_elapsed_sec))


def log_ratio(raw_rate: float, protected_rate: float) -> float:
    """d = ln(protected time per step / raw time per step)."""
    return -math.log(_speed_ratio(raw_rate, protected_rate))


def overhead_of_log_ratio(d: float) -> float:
    """`(1 - exp(-d)) * 100`: the overhead in percent for a log-ratio of times."""
    return -math.expm1(-d) * 100


def matches_published(published_pct: float, computed_pct: float) -> bool:
    """Whether `computed_pct` rounds to the published value at the two decimals of a published row."""
    return round(computed_pct, 2) == round(published_pct, 2)
