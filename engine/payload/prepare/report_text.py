"""A report about a data file as a few lines for a person."""

from __future__ import annotations

from typing import Final

from engine.payload.prepare.report import Piece, Report
from engine.system.text import visible

_PIECES: Final = 5
_PIECE: Final = 96
_KEYS: Final = 8


def report_lines(report: Report) -> list[str]:
    """At most 12 lines, and one for each warning; none holds a control character."""
    lines = [_samples(report), _tokens(report), _spread(report), _length(report)]
    if report.template is not None:
        digest = report.template.digest
        lines.append(f"template: {report.template.source}{f', SHA-256 {digest[:12]}' if digest else ''}")
    if report.ignored_keys:
        more = len(report.ignored_keys) - _KEYS
        others = f" and {more} more" if more > 0 else ""
        lines.append(f"ignored keys: {', '.join(report.ignored_keys[:_KEYS])}{others}")
    lines += _shown(report)
    return [*(visible(line) for line in lines), *(f"warning: {visible(one)}" for one in report.warnings)]


def _samples(report: Report) -> str:
    parts = [f"{report.used:,} trained on"]
    is_split = report.samples == report.used + report.dropped + report.held_out
    parts += [
        f"{count:,} {what}"
        for count, what in (
            (report.held_out, "held out" if is_split else "more held out, from another file"),
            (report.dropped, "dropped with nothing left to learn"),
            (report.cut, "cut"),
            (report.duplicates, "repeating an earlier one"),
        )
        if count
    ]
    return f"data: {report.format}, {_counted(report.samples, 'sample')}: {', '.join(parts)}"


def _tokens(report: Report) -> str:
    return (
        f"tokens: {report.tokens:,}, of which {report.answer_tokens_kept:,} are answers to learn "
        f"({report.answer_tokens_kept_pct:g} % of {report.answer_tokens:,})"
    )


def _spread(report: Report) -> str:
    spread = report.lengths
    return (
        f"lengths: {spread.min:,} to {spread.max:,} tokens; half of the samples up to {spread.p50:,}, "
        f"90 % {spread.p90:,}, 95 % {spread.p95:,}, 99 % {spread.p99:,}"
    )


def _length(report: Report) -> str:
    return f"maximum length: {report.max_length:,} tokens ({report.max_length_reason})"


def _shown(report: Report) -> list[str]:
    shown = report.shown
    if shown is None or not shown.pieces:
        return []
    part = "" if shown.whole and len(shown.pieces) <= _PIECES else ", in part"
    return [f"sample {shown.number:,}{part}:", *(f"  {_piece(piece)}" for piece in shown.pieces[:_PIECES])]


def _piece(piece: Piece) -> str:
    text = piece.text
    if len(text) > _PIECE:
        text = f"{text[: _PIECE - 30]} [...] {text[-20:]}"
    return f"{'learned' if piece.learned else 'masked '} | {text}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
