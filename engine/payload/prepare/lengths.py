"""How long samples are, and how long a run lets them be."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.plan import MAX_LENGTH

LONGEST: Final = "the longest sample"
MODEL: Final = "the model's limit"
MEMORY: Final = "memory"
RUN: Final = "the limit of a run"
GIVEN: Final = "given"
_LEAST: Final = 2
_FINE: Final = 8
_COARSE: Final = 64
_COARSE_FROM: Final = 1024


class ChosenLength(NamedTuple):
    """A maximum length in tokens, and why it is that one."""

    length: int
    reason: str


class Lengths(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Tokens of whole samples; a percentile is the length of a sample (nearest rank), never a fraction."""

    min: int
    p50: int
    p90: int
    p95: int
    p99: int
    max: int


def lengths_of(lengths: NDArray[np.int64]) -> Lengths:
    """The spread of `lengths`, int64 [samples], of which there is at least one."""
    p50, p90, p95, p99 = (int(value) for value in np.percentile(lengths, [50, 90, 95, 99], method="inverted_cdf"))
    return Lengths(min=int(lengths.min()), p50=p50, p90=p90, p95=p95, p99=p99, max=int(lengths.max()))


def auto_length(lengths: NDArray[np.int64], limit_by_model: int | None, limit_by_memory: int | None) -> ChosenLength:
    """The longest sample, rounded up to a multiple of 8 (of 64 above 1,024 tokens), as far as the limits allow.

    A limit in tokens is None where it is not known. Where a limit cuts samples, the reason says which limit and how
    many. Raises `DataError` (`memory_too_small`) if the memory does not suffice for two tokens.
    """
    if limit_by_memory is not None and limit_by_memory < _LEAST:
        raise DataError(
            "The memory does not suffice for a sample of two tokens.",
            "Give a smaller --batch, or use a machine with more memory.",
            code="memory_too_small",
        )
    limits = ((limit_by_model, MODEL), (limit_by_memory, MEMORY), (MAX_LENGTH, RUN))
    cap, name = min(((limit, name) for limit, name in limits if limit is not None), key=lambda one: one[0])
    longest = int(lengths.max())
    step = _FINE if longest <= _COARSE_FROM else _COARSE
    if longest <= cap:
        return ChosenLength(max(_LEAST, min(-(-longest // step) * step, cap)), LONGEST)
    if name == MEMORY and cap > step:
        cap -= cap % step
    longer = int((lengths > cap).sum())
    return ChosenLength(cap, f"{name}; {longer:,} of {len(lengths):,} samples are longer")
