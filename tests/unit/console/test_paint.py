"""Lines of spans: fitting, spreading, bars."""

from __future__ import annotations

import pytest

from glasshouse_tui.widgets.paint import Line, bar, fit, line, spread, width_of


def text_of(spans: Line) -> str:
    return "".join(text for text, _ in spans)


@pytest.mark.parametrize(
    ("text", "width", "align", "shown"),
    [
        ("demo", 6, "left", "demo  "),
        ("demo", 6, "right", "  demo"),
        ("demo", 4, "left", "demo"),
        ("a long label", 6, "left", "a lon…"),
        ("日本語", 4, "left", "日 …"),
        ("x", 0, "left", ""),
    ],
)
def test_a_line_is_padded_or_cut_to_a_width(text: str, width: int, align: str, shown: str) -> None:
    fitted = fit(line(text), width, align=align)
    assert text_of(fitted).rstrip() == shown.rstrip()
    assert width_of(fitted) <= width


def test_the_span_at_the_edge_is_cut() -> None:
    assert fit(line(("abc", "good"), ("defg", "bad")), 5) == (("abc", "good"), ("d…", "bad"))


def test_spread_cuts_only_the_left_part() -> None:
    assert text_of(spread(line("left"), line("right"), 14)) == "left     right"
    assert text_of(spread(line("a very long left"), line("right"), 14)) == "a very … right"


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "──────────"),
        (0.5, "━━━━━─────"),
        (0.55, "━━━━━╸────"),
        (1.0, "━━━━━━━━━━"),
        (7.0, "━━━━━━━━━━"),
        (None, " " * 10),
    ],
)
def test_a_bar_shows_its_fraction_by_shape(share: float | None, shown: str) -> None:
    assert text_of(bar(share, 10, "raw")) == shown
