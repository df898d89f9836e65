"""Paging over a long history: what is held, and what is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from glasshouse_tui.paging import MOST, NEAR, PAGE, Question, Window, read

if TYPE_CHECKING:
    from tests.functional.console.conftest import Story

ROWS = 430
MINE = Question(source="mine")


@pytest.fixture
def long_home(story: Story) -> Path:
    for number in range(ROWS):
        story.clock.tick(60)
        story.queue(f"{number:012x}", label=f"run {number:03d}", owned=False)
    return story.home


def step(home: Path, window: Window, where: str, question: Question = MINE) -> Window:
    return window.take(read(home, question, where, window.rows, window.first))  # type: ignore[arg-type]


def labels(window: Window) -> list[str]:
    return [row.label for row in window.rows]


def test_walking_down_and_up_passes_every_row_once_in_order(long_home: Path) -> None:
    window = step(long_home, Window(), "fresh")
    assert (window.first, window.total, len(window.rows)) == (0, ROWS, PAGE)
    seen = labels(window)
    while window.more_below:
        had = set(labels(window))
        window = step(long_home, window, "below")
        seen += [label for label in labels(window) if label not in had]
        assert len(window.rows) <= MOST
    assert seen == [f"run {number:03d}" for number in reversed(range(ROWS))]
    assert window.first + len(window.rows) == ROWS
    while window.more_above:
        window = step(long_home, window, "above")
    assert window.first == 0
    assert labels(window) == seen[: len(window.rows)]


def test_the_end_is_reached_without_reading_what_lies_between(long_home: Path) -> None:
    window = step(long_home, Window(question=MINE), "last")
    assert len(window.rows) == PAGE
    assert labels(window)[-1] == "run 000"
    assert (window.first, window.more_below) == (ROWS - PAGE, False)


def test_the_same_stretch_is_read_again_where_it_lies(long_home: Path) -> None:
    window = step(long_home, step(long_home, step(long_home, Window(), "fresh"), "below"), "below")
    window = step(long_home, window, "below")
    assert window.first > 0
    assert labels(step(long_home, window, "again")) == labels(window)


@pytest.mark.parametrize("sort", ["created_at", "label", "model", "overhead_pct"])
@pytest.mark.parametrize("descending", [True, False])
def test_every_order_pages_without_gaps_or_repeats(long_home: Path, sort: str, descending: bool) -> None:
    question = Question(source="all", sort=sort, descending=descending)  # type: ignore[arg-type]
    window = step(long_home, Window(), "fresh", question)
    seen = {row.id for row in window.rows}
    while window.more_below:
        window = step(long_home, window, "below", question)
        seen |= {row.id for row in window.rows}
    assert len(seen) == window.total == ROWS + 17


def test_more_is_asked_for_only_near_an_edge() -> None:
    window = Window(rows=tuple(range(PAGE)), first=50, total=1000)  # type: ignore[arg-type]
    assert window.wants(PAGE // 2) is None
    assert window.wants(PAGE - NEAR) == "below"
    assert window.wants(NEAR - 1) == "above"
    assert Window(rows=tuple(range(PAGE)), first=0, total=PAGE).wants(0) is None  # type: ignore[arg-type]


def test_an_answer_to_another_question_does_not_mix_in(long_home: Path) -> None:
    window = step(long_home, Window(), "fresh")
    stale = read(long_home, Question(source="mine", sort="label"), "below", window.rows, window.first)
    assert window.take(stale) == window
