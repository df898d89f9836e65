"""Pieces that are encoded in several processes, put together in order."""

from __future__ import annotations

import random

import pytest

from engine.errors import DataError
from engine.payload.prepare import collect
from engine.payload.prepare.collect import Part, collected
from tests.unit.payload.prepare.pieces import lettering


def words(pieces: int) -> list[list[str]]:
    draw = random.Random(4)  # noqa: S311
    return [
        ["".join(draw.choices("abc#", k=draw.randint(0, 9))) for _ in range(draw.randint(0, 40))] for _ in range(pieces)
    ]


def facts(part: Part) -> tuple[object, ...]:
    samples = part.samples
    return (
        samples.ids.tolist(),
        samples.flags.tolist(),
        samples.ends.tolist(),
        part.records,
        part.bad,
        part.faults,
        part.ignored,
    )


def test_the_result_is_the_same_with_any_number_of_processes() -> None:
    pieces = words(30)
    alone = collected(iter(pieces), lettering, 0, processes=1)
    for processes in (2, 3):
        assert facts(collected(iter(pieces), lettering, 3, processes=processes)) == facts(alone)
    everything = [word for piece in pieces for word in piece]
    assert alone.samples.ids.tolist() == [ord(letter) for word in everything for letter in word]
    assert len(alone.samples.ends) == sum(map(bool, everything))
    assert alone.records == len(everything)
    assert alone.samples.sample(3)[0].tolist() == [ord(letter) for letter in [word for word in everything if word][3]]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_fault_is_counted_and_the_first_ten_are_kept(processes: int) -> None:
    pieces = [["a"] * place + [""] * 4 for place in range(8)]
    part = collected(iter(pieces), lettering, 0, processes=processes)
    assert part.bad == 32
    first = [f"word {place + number}" for place in range(8) for number in range(4)][:10]
    assert [fault.place for fault in part.faults] == first


def test_each_piece_is_reported_once() -> None:
    seen: list[int] = []
    collected(iter(words(12)), lettering, 0, processes=2, done=seen.append)
    assert sorted(seen) == list(range(12))


def test_no_pieces_are_no_samples() -> None:
    part = collected(iter([]), lettering, 0, processes=1)
    assert (len(part.samples.ends), part.records, part.bad) == (0, 0, 0)


def test_more_tokens_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "MAX_TOKENS", 10)
    with pytest.raises(DataError) as failure:
        collected(iter([["abcdef"], ["abcdef"], ["a"]]), lettering, 0, processes=1)
    assert failure.value.code == "data_too_large"
