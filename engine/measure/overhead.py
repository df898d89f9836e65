"""The published definition of overhead, and its log-ratio form."""

from __future__ import annotations

import math


def rate(steps: float, elapsed_sec: float) -> float:
    """Steps per second. Raises `ValueError` unless both are finite and above zero."""
    if not (math.isfinite(steps) and math.isfinite(elapsed_sec) and steps > 0 and elapsed_sec > 0):
        raise ValueError(f"no rate from {steps} steps in {elapsed_sec} s")
    return steps / elapsed_sec


def _speed_ratio(raw_rate: float, protected_rate: float) -> float:
    if not (math.isfinite(raw_rate) and math.isfinite(protected_rate) and raw_rate > 0 and protected_rate > 0):
        raise ValueError(f"no overhead from the rates {raw_rate} and {protected_rate}")
    return protected_rate / raw_rate


def overhead_pct(raw_rate: float, protected_rate: float) -> float:
    """`(1 - protected / raw) * 100`, in percent, unrounded. Below zero it is noise, never a gain."""
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
    """`(1 - exp(-d)) * 100`, the overhead in percent of a log-ratio of times."""
    return -math.expm1(-d) * 100


def recomputes(stated_pct: float, computed_pct: float) -> bool:
    """Whether `computed_pct` rounds to the stated value at the two decimals of a published row."""
    return round(computed_pct, 2) == round(stated_pct, 2)
