"""What a run will do with token ids, and the sample that is shown."""

from __future__ import annotations

from collections.abc import Sequence

from engine.payload.chat.ragged import LEARNED, Ragged, ragged
from engine.payload.prepare.cache import Facts
from engine.payload.prepare.describe import Wanted, described
from engine.payload.prepare.report import SHOWN_TOKENS, Template

FACTS = Facts(digest="d" * 64, size=10, format="chats", ignored=("id",))


class Letters:
    """An encoder whose ids are characters."""

    def show(self, ids: Sequence[int], flags: Sequence[int]) -> list[tuple[str, bool]]:
        return [(chr(code), bool(flag & LEARNED)) for code, flag in zip(ids, flags, strict=True)]


def chats(count: int, answer: int = 5) -> Ragged:
    return ragged([([100 + number, 65, *[66] * answer], [0, 0, *[LEARNED] * answer]) for number in range(count)])


def test_the_automatic_length_is_that_of_the_longest_sample() -> None:
    found = described(chats(20), FACTS, Letters(), Wanted(max_length=None, limit_by_model=512))
    assert (found.length, found.report.max_length_reason) == (8, "the longest sample")
    assert found.train.tolist() == list(range(20))
    assert len(found.held_out) == 0
    assert (found.report.used, found.report.cut, found.report.held_out) == (20, 0, 0)
    assert found.report.ignored_keys == ("id",)


def test_held_out_samples_are_not_counted_as_used() -> None:
    wanted = Wanted(max_length=6, limit_by_model=512, held_out=25, seed=3)
    found = described(chats(20), FACTS, Letters(), wanted, template=Template(source="mine", digest="ab"))
    assert (found.report.used, found.report.held_out, len(found.train), len(found.held_out)) == (15, 5, 15, 5)
    assert found.report.max_length_reason == "given"
    assert found.report.counts.template == "ab"


def test_the_shown_sample_is_cut_as_the_model_gets_it() -> None:
    found = described(chats(2), FACTS, Letters(), Wanted(max_length=4, limit_by_model=512)).report.shown
    assert found is not None
    assert [(piece.text, piece.learned) for piece in found.pieces] == [("dA", False), ("BB", True)]
    assert not found.whole


def test_no_more_of_a_long_sample_is_turned_into_text_than_can_be_shown() -> None:
    asked: list[int] = []

    class Counting(Letters):
        def show(self, ids: Sequence[int], flags: Sequence[int]) -> list[tuple[str, bool]]:
            asked.append(len(ids))
            return super().show(ids, flags)

    described(chats(1, answer=50_000), FACTS, Counting(), Wanted(max_length=None, limit_by_model=131_072))
    assert asked == [SHOWN_TOKENS]
