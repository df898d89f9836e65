"""From token ids to what a run will do with them: the length, the held-out samples, the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.payload.chat.ragged import Ragged
from engine.payload.prepare.arrays import split
from engine.payload.prepare.cache import Facts
from engine.payload.prepare.lengths import GIVEN, ChosenLength, auto_length
from engine.payload.prepare.report import (
    SHOWN_TOKENS,
    Report,
    ShownSample,
    Template,
    report_of,
    shown_index,
    shown_sample,
)


class Shows(Protocol):
    """An encoder that turns ids back into text."""

    def show(self, ids: Sequence[int], flags: Sequence[int]) -> list[tuple[str, bool]]:
        """(text, learned) of each stretch."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a run asks for: `max_length` in tokens, or None for the automatic one within the limits; `held_out` in
    percent, drawn by `seed`, or None."""

    max_length: int | None
    limit_by_model: int | None
    limit_by_memory: int | None = None
    held_out: float | None = None
    seed: int = 0


class Described(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The report, the chosen maximum length, and the indices of samples to train on and of those held out."""

    report: Report
    length: int
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


def described(
    samples: Ragged, facts: Facts, encoder: Shows, wanted: Wanted, *, template: Template | None = None
) -> Described:
    """Decide what is left open and report on it. Raises `DataError` as `auto_length` and `split`."""
    if wanted.max_length is None:
        chosen = auto_length(samples.lengths, wanted.limit_by_model, wanted.limit_by_memory)
    else:
        chosen = ChosenLength(wanted.max_length, GIVEN)
    if wanted.held_out is None:
        train, held_out = np.arange(len(samples.ends)), np.zeros(0, np.int64)
    else:
        train, held_out = split(samples, wanted.held_out, wanted.seed, max_length=chosen.length)
    report = report_of(
        samples,
        chosen,
        data_format=facts.format,
        held_out=held_out,
        template=template,
        ignored=facts.ignored,
        shown=rendered(samples, encoder, chosen.length),
    )
    return Described(report=report, length=chosen.length, train=train, held_out=held_out)


def rendered(samples: Ragged, encoder: Shows, max_length: int) -> ShownSample:
    """The first used sample as the model gets it, cut to `max_length`, with what is learned of it."""
    index = shown_index(samples, max_length)
    ids, flags = samples.sample(index)
    most = min(max_length, SHOWN_TOKENS)
    pieces = encoder.show(ids[:most].tolist(), flags[:most].tolist())
    return shown_sample(index, pieces, whole=len(ids) <= most)
