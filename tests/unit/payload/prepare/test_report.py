"""What a report counts, when it warns and refuses, and how a sample is shown."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from engine.errors import DataError
from engine.payload.chat.ragged import LEARNED, Ragged, ragged
from engine.payload.prepare.lengths import ChosenLength
from engine.payload.prepare.report import (
    MAX_PIECE,
    MAX_PIECES,
    Report,
    Template,
    check_loss,
    report_of,
    shown_index,
    shown_sample,
)
from engine.payload.prepare.report_text import report_lines


def samples_of(*shapes: tuple[int, int]) -> Ragged:
    """Samples of so many prompt tokens and so many answer tokens."""
    return ragged(
        [
            ([number, *range(prompt + answer - 1)], [0] * prompt + [LEARNED] * answer)
            for number, (prompt, answer) in enumerate(shapes)
        ]
    )


def report(samples: Ragged, length: int, held_out: list[int] | None = None) -> Report:
    held = None if held_out is None else np.array(held_out, np.int64)
    return report_of(samples, ChosenLength(length, "given"), data_format="chats", held_out=held)


def test_every_sample_is_used_dropped_or_held_out() -> None:
    found = report(samples_of((2, 8), (12, 3), (5, 20), (1, 1), (3, 3)), 10, held_out=[4])
    assert (found.samples, found.used, found.dropped, found.held_out, found.cut) == (5, 3, 1, 1, 1)
    assert found.tokens == 10 + 10 + 2
    assert found.answer_tokens == 8 + 3 + 20 + 1
    assert found.answer_tokens_kept == 8 + 5 + 1
    assert found.answer_tokens_kept_pct == round(100 * 14 / 32, 2)
    assert (found.lengths.min, found.lengths.max) == (2, 25)
    counts = found.counts
    assert (counts.used, counts.dropped, counts.cut, counts.held_out) == (3, 1, 1, 1)
    assert (counts.tokens, counts.answer_tokens, counts.answer_tokens_kept) == (22, 32, 14)


@pytest.mark.parametrize(("lost", "warns"), [(0, False), (5, False), (6, True), (50, True)])
def test_a_loss_above_five_percent_is_a_warning(lost: int, warns: bool) -> None:
    found = report(samples_of((1, 100)), 101 - lost)
    assert bool(found.warnings) is warns
    assert any(line.startswith("warning: ") for line in report_lines(found)) is warns
    check_loss(found)


def test_a_loss_above_half_is_refused_unless_it_is_allowed() -> None:
    found = report(samples_of((1, 100)), 50)
    with pytest.raises(DataError) as failure:
        check_loss(found)
    assert (failure.value.code, failure.value.exit_code) == ("data_mostly_lost", 2)
    assert "--allow-data-loss" in failure.value.hint
    check_loss(found, allow_loss=True)


def test_data_of_which_nothing_is_left_is_refused_even_if_loss_is_allowed() -> None:
    with pytest.raises(DataError) as failure:
        check_loss(report(samples_of((20, 5)), 10), allow_loss=True)
    assert failure.value.code == "data_nothing_to_learn"


def test_duplicates_are_counted() -> None:
    assert report(ragged([([1, 2], [0, LEARNED])] * 4), 8).duplicates == 3


def test_the_shown_sample_is_the_first_that_is_used() -> None:
    samples = samples_of((20, 5), (2, 5))
    assert shown_index(samples, 10) == 1
    assert shown_index(samples, 100) == 0
    assert shown_index(samples, 1) == 0


def test_a_shown_sample_is_bounded_and_cannot_control_a_terminal() -> None:
    hostile = [("\x1b[2J\u202e" + "x" * 5000 + "\r\n", place % 2 == 0) for place in range(40)]
    shown = shown_sample(0, hostile)
    assert not shown.whole
    assert len(shown.pieces) == MAX_PIECES
    assert all(piece.text.isprintable() for piece in shown.pieces)
    assert all(len(piece.text) < MAX_PIECE + 100 for piece in shown.pieces)
    assert "characters ...]" in shown.pieces[0].text


def test_neighbouring_stretches_of_the_same_kind_are_one() -> None:
    shown = shown_sample(2, [("a", False), ("b", False), ("", True), ("c", True)])
    assert [(piece.text, piece.learned) for piece in shown.pieces] == [("ab", False), ("c", True)]
    assert (shown.number, shown.whole) == (3, True)


def test_the_text_of_a_report_is_short_and_has_no_control_characters() -> None:
    found = report_of(
        samples_of((2, 8), (12, 3)),
        ChosenLength(10, "given"),
        data_format="chats\x1b",
        template=Template(source="tokenizer_config.json\n", digest="ab" * 32),
        ignored=[f"key\x07{number}" * 30 for number in range(100)],
        shown=shown_sample(0, [("line\none", place % 2 == 0) for place in range(30)]),
    )
    lines = report_lines(found)
    assert len(lines) <= 12 + len(found.warnings)
    assert all(line.isprintable() for line in lines)
    assert "  learned | line\\none" in lines
    assert "SHA-256 abababababab" in "\n".join(lines)


def test_a_report_is_json_with_names_in_camel_case() -> None:
    document = msgspec.json.decode(msgspec.json.encode(report(samples_of((2, 8)), 16)))
    assert document["answerTokensKept"] == 8
    assert document["maxLengthReason"] == "given"
    assert set(document["lengths"]) == {"min", "p50", "p90", "p95", "p99", "max"}
