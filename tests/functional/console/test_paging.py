"""Paging over a long history: which rows are held, and which are read next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from glasshouse_tui.paging import MARGIN, MAX_ROWS, PAGE, Query, Window, read

if TYPE_CHECKING:
    from tests.functional.console.conftest import Story

ROWS = 430
MINE = Query(source="mine")


@pytest.fixture
def long_home(story: Story) -> Path:
    for number in range(ROWS):
        story.clock.tick(60)
        story.queue(f"{number:012x}", label=f"run {number:03d}", owned=False)
    return story.home


def step(home: Path, window: Window, fetch: str, query: Query = MINE) -> Window:
    return window.merge(read(home, query, fetch, window.rows, window.first))  # type: ignore[arg-type]


def labels(window: Window) -> list[str]:
    return [row.label for row in window.rows]


def test_paging_down_and_up_visits_every_row_once_in_order(long_home: Path) -> None:
    window = step(long_home, Window(), "first")
    assert (window.first, window.total, len(window.rows)) == (0, ROWS, PAGE)
    seen = labels(window)
    while window.more_below:
        had = set(labels(window))
        window = step(long_home, window, "below")
        seen += [label for label in labels(window) if label not in had]
        assert len(window.rows) <= MAX_ROWS
    assert seen == [f"run {number:03d}" for number in reversed(range(ROWS))]
    assert window.first + len(window.rows) == ROWS
    while window.more_above:
        window = step(long_home, window, "above")
    assert window.first == 0
    assert labels(window) == seen[: len(window.rows)]


def test_the_end_is_reached_without_reading_the_rows_between(long_home: Path) -> None:
    window = step(long_home, Window(query=MINE), "last")
    assert len(window.rows) == PAGE
    assert labels(window)[-1] == "run 000"
    assert (window.first, window.more_below) == (ROWS - PAGE, False)


def test_a_reload_reads_the_same_rows(long_home: Path) -> None:
    window = step(long_home, step(long_home, step(long_home, Window(), "first"), "below"), "below")
    window = step(long_home, window, "below")
    assert window.first > 0
    assert labels(step(long_home, window, "reload")) == labels(window)


@pytest.mark.parametrize("sort", ["created_at", "label", "model", "overhead_pct"])
@pytest.mark.parametrize("descending", [True, False])
def test_every_order_pages_without_gaps_or_repeats(long_home: Path, sort: str, descending: bool) -> None:
    query = Query(source="all", sort=sort, descending=descending)  # type: ignore[arg-type]
    window = step(long_home, Window(), "first", query)
    seen = {row.id for row in window.rows}
    while window.more_below:
        window = step(long_home, window, "below", query)
        seen |= {row.id for row in window.rows}
    assert len(seen) == window.total == ROWS + 17


def test_more_rows_are_requested_only_near_an_edge() -> None:
    window = Window(rows=tuple(range(PAGE)), first=50, total=1000)  # type: ignore[arg-type]
    assert window.next_fetch(PAGE // 2) is None
    assert window.next_fetch(PAGE - MARGIN) == "below"
    assert window.next_fetch(MARGIN - 1) == "above"
    assert Window(rows=tuple(range(PAGE)), first=0, total=PAGE).next_fetch(0) is None  # type: ignore[arg-type]


def test_a_result_of_another_query_is_ignored(long_home: Path) -> None:
    window = step(long_home, Window(), "first")
    stale = read(long_home, Query(source="mine", sort="label"), "below", window.rows, window.first)
    assert window.merge(stale) == window
