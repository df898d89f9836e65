"""The loss plot as text."""

from __future__ import annotations

import pytest
from rich.text import Text

from glasshouse_tui.messages import PlotSpec
from glasshouse_tui.theme import DARK, MONO
from glasshouse_tui.widgets.lossplot import draw


def curve(steps: int, stride: int = 10) -> tuple[tuple[int, float], ...]:
    return tuple((step, 6.0 - step / 400) for step in range(stride, steps + 1, stride))


def spec(theme: str = DARK, **curves: tuple[tuple[int, float], ...]) -> PlotSpec:
    return PlotSpec((60, 10), theme, 1200, curves)


def test_a_plot_has_the_requested_size() -> None:
    lines = Text.from_ansi(draw(spec(raw=curve(1200))).rstrip("\n")).plain.split("\n")
    assert len(lines) == 10
    assert {len(row) for row in lines} == {60}


def test_equal_curves_overlap_and_both_are_visible() -> None:
    text = Text.from_ansi(draw(spec(raw=curve(1200), protected=curve(600)))).plain
    rows_with = [set(row) for row in text.split("\n")]
    crosses = [row for row in rows_with if "x" in row]
    assert 2 < sum(row.count("x") for row in text.split("\n")) <= 15
    assert all(any("\u2800" <= char <= "\u28ff" for char in row) for row in crosses)


def test_the_step_axis_extends_to_the_planned_steps() -> None:
    text = Text.from_ansi(draw(spec(raw=curve(300)))).plain
    assert "1,200" in text
    body = [row for row in text.split("\n") if any("\u2800" < char <= "\u28ff" for char in row)]
    rightmost = max(max(i for i, char in enumerate(row) if "\u2800" < char <= "\u28ff") for row in body)
    assert rightmost < 30


def test_a_protected_segment_alone_is_a_line() -> None:
    text = Text.from_ansi(draw(spec(protected=curve(1200)))).plain
    assert "x" not in text


def test_the_monochrome_plot_has_no_escapes() -> None:
    assert "\x1b[" not in draw(spec(MONO, raw=curve(1200), protected=curve(600)))


@pytest.mark.parametrize("points", [((1, 3.0),), ((1, float("nan")),), ((1, 2.0), (2, float("inf")), (3, 2.0))])
def test_few_flat_or_non_finite_points_do_not_break_it(points: tuple[tuple[int, float], ...]) -> None:
    assert draw(spec(raw=points))
