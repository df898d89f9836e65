"""What a data file would teach: counts, lengths, losses by cutting, and one sample with its mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.payload.chat.ragged import Ragged
from engine.payload.prepare.arrays import counted, duplicates, first_equal
from engine.payload.prepare.lengths import ChosenLength, Lengths, lengths_of
from engine.plan import DataCounts
from engine.system.text import visible

WARN_LOST_PCT: Final = 5.0
MOST_LOST_PCT: Final = 50.0
MAX_PIECES: Final = 12
MAX_PIECE: Final = 240
SHOWN_TOKENS: Final = 2048
"""How much of a sample is turned back into text, at most."""
_HEAD: Final = 160
_TAIL: Final = 60
_MAX_IGNORED: Final = 20
_MAX_KEY: Final = 40


class Piece(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A stretch of a sample as text, control characters escaped; `learned`: whether the model learns to write it."""

    text: str
    learned: bool


class Template(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where the chat template comes from, and its SHA-256 in hex; None for one that is built in."""

    source: str
    digest: str | None = None


class ShownSample(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One sample as the model gets it. `number` counts from 1; `whole` is False where text was left out."""

    number: int
    whole: bool
    pieces: tuple[Piece, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """About a data file at one maximum length (`--json` of `data`).

    `samples` = `used` + `dropped` + `held_out`, unless held-out samples have a file of their own. `cut`, `tokens` and
    `answer_tokens_kept` are of those used; `answer_tokens` of those used or dropped, uncut; `lengths` of all, uncut.
    `duplicates` repeat the ids of an earlier sample. `answer_tokens_kept_pct` is 100 where there are no answers.
    """

    format: str
    samples: int
    used: int
    dropped: int
    cut: int
    held_out: int
    duplicates: int
    tokens: int
    answer_tokens: int
    answer_tokens_kept: int
    answer_tokens_kept_pct: float
    lengths: Lengths
    max_length: int
    max_length_reason: str
    template: Template | None = None
    ignored_keys: tuple[str, ...] = ()
    shown: ShownSample | None = None
    warnings: tuple[str, ...] = ()

    @property
    def counts(self) -> DataCounts:
        """What the plan and the row say of the data."""
        return DataCounts(
            used=self.used,
            dropped=self.dropped,
            cut=self.cut,
            tokens=self.tokens,
            answer_tokens=self.answer_tokens,
            answer_tokens_kept=self.answer_tokens_kept,
            held_out=self.held_out,
            template=None if self.template is None else self.template.digest,
        )

    @property
    def lost_pct(self) -> float:
        """Percent of the answer tokens that are not trained on because samples are cut."""
        return 100 * (self.answer_tokens - self.answer_tokens_kept) / self.answer_tokens if self.answer_tokens else 0.0


def report_of(
    samples: Ragged,
    chosen: ChosenLength,
    *,
    data_format: str,
    held_out: NDArray[np.int64] | None = None,
    template: Template | None = None,
    ignored: Sequence[str] = (),
    shown: ShownSample | None = None,
) -> Report:
    """The report at `chosen` length; `held_out` are indices of usable samples that are not trained on."""
    figures = counted(samples, chosen.length)
    trained = np.ones(len(samples.ends), np.bool_)
    if held_out is not None:
        trained[held_out] = False
    used = figures.usable & trained
    answers, kept = int(figures.answers[trained].sum()), int(figures.answers_kept[used].sum())
    report = Report(
        format=visible(data_format),
        samples=len(samples.ends),
        used=int(used.sum()),
        dropped=int((trained & ~used).sum()),
        cut=int((figures.cut & used).sum()),
        held_out=int((~trained).sum()),
        duplicates=duplicates(first_equal(samples)),
        tokens=int(figures.kept[used].sum()),
        answer_tokens=answers,
        answer_tokens_kept=kept,
        answer_tokens_kept_pct=round(100 * kept / answers, 2) if answers else 100.0,
        lengths=lengths_of(figures.lengths),
        max_length=chosen.length,
        max_length_reason=chosen.reason,
        template=template,
        ignored_keys=tuple(visible(key[:_MAX_KEY]) for key in ignored[:_MAX_IGNORED]),
        shown=shown,
    )
    warning = data_cut_warning(report)
    return report if warning is None else msgspec.structs.replace(report, warnings=(warning,))


def data_cut_warning(report: Report) -> str | None:
    """A sentence if more than 5 % of the answer tokens are lost; None if not."""
    if report.lost_pct <= WARN_LOST_PCT:
        return None
    return (
        f"{report.lost_pct:.1f} % of the answer tokens are lost, because samples are cut at {report.max_length} tokens "
        f"({report.dropped:,} of {report.samples:,} samples are dropped, {report.cut:,} cut)."
    )


def check_loss(report: Report, *, allow_loss: bool = False) -> None:
    """Raise `DataError`: `data_nothing_to_learn` if no sample is left, `data_mostly_lost` if more than 50 % of the
    answer tokens are lost and `allow_loss` is not set."""
    if not report.used:
        raise DataError(
            f"No sample has a part of an answer within its first {report.max_length} tokens, so nothing can be "
            "learned.",
            "Give a larger --max-length or shorter prompts.",
            code="data_nothing_to_learn",
        )
    if report.lost_pct > MOST_LOST_PCT and not allow_loss:
        raise DataError(
            f"{report.lost_pct:.1f} % of the answer tokens would be lost by the cut at {report.max_length} tokens.",
            f"Give a larger --max-length (the longest sample has {report.lengths.max:,} tokens), shorter samples, or "
            "--allow-data-loss if this is what you want.",
            code="data_mostly_lost",
        )


def shown_index(samples: Ragged, max_length: int) -> int:
    """The first sample that is used; the first one if none is."""
    usable = np.flatnonzero(counted(samples, max_length).usable)
    return int(usable[0]) if len(usable) else 0


def shown_sample(index: int, pieces: Sequence[tuple[str, bool]], *, whole: bool = True) -> ShownSample:
    """The sample at `index` from (text, learned) stretches, bounded in size; long ones lose their middle.

    `whole`: whether the stretches are all of the sample.
    """
    kept = [(text, learned) for text, learned in _merged(pieces) if text]
    few = kept[:MAX_PIECES]
    return ShownSample(
        number=index + 1,
        whole=whole and len(few) == len(kept) and all(len(text) <= MAX_PIECE for text, _ in few),
        pieces=tuple(Piece(text=_bounded(text), learned=learned) for text, learned in few),
    )


def _merged(pieces: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Neighbours of the same kind as one."""
    merged: list[tuple[str, bool]] = []
    for text, learned in pieces:
        if merged and merged[-1][1] == learned:
            merged[-1] = (merged[-1][0] + text, learned)
        else:
            merged.append((text, learned))
    return merged


def _bounded(text: str) -> str:
    if len(text) <= MAX_PIECE:
        return visible(text)
    left_out = len(text) - _HEAD - _TAIL
    return f"{visible(text[:_HEAD])} [... {left_out:,} characters ...] {visible(text[-_TAIL:])}"
