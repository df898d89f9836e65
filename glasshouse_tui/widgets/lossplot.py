"""Both loss curves over each other, drawn by plotext in a thread and shown as it comes."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from rich.text import Text
from textual import work
from textual.app import RenderResult
from textual.color import Color
from textual.content import Content
from textual.widget import Widget

from glasshouse_tui.format import loss
from glasshouse_tui.messages import Picture, PlotDrawn
from glasshouse_tui.theme import is_colourless, tone

Curve = Sequence[tuple[int, float]]

_PLOTEXT: Final = threading.Lock()
_LINE: Final = "braille"
_CROSS: Final = "x"
_CELLS_A_CROSS: Final = 4
_AXIS_CELLS: Final = 8
_TICKS: Final = 4


class LossPlot(Widget):
    """Raw is a line, protected is crosses on it: where the work is the same the two lie on each other."""

    DEFAULT_CSS = "LossPlot { height: 1fr; width: 1fr; }"
    ALLOW_SELECT = False

    def __init__(self) -> None:
        super().__init__()
        self._curves: dict[str, tuple[tuple[int, float], ...]] = {}
        self._limit: int | None = None
        self._drawn: Text | None = None
        self._wanted: Picture | None = None
        self._shown: Picture | None = None
        self._drawing = False
        self._absent = "Losses appear with the first measured steps."

    @property
    def points(self) -> int:
        """Points for each curve that the width can show."""
        return max(0, self.content_size.width - 8) * 2

    @property
    def is_drawn(self) -> bool:
        """True when the newest curves are on the screen."""
        return self._wanted is not None and self._wanted == self._shown

    def show(self, curves: Mapping[str, Curve], *, limit: int | None = None, absent: str | None = None) -> None:
        """Replace the curves. `limit` is the steps that are planned; `absent` is said where there are no curves."""
        if absent is not None:
            self._absent = absent
        self._limit = limit
        self._curves = {kind: tuple(curve) for kind, curve in curves.items() if curve}
        self._draw()

    def on_resize(self) -> None:
        """Draw for the new size."""
        self._draw()

    def on_mount(self) -> None:
        """Draw again under another theme."""
        self.app.theme_changed_signal.subscribe(self, lambda _theme: self._draw())

    def render(self) -> RenderResult:
        """The newest drawing, or why there is none."""
        if not self._curves or self._drawn is None:
            return Content.assemble((self._absent, tone(self.app.theme, "muted")))
        return self._drawn

    def on_plot_drawn(self, message: PlotDrawn) -> None:
        """Show a drawing, and begin the next when another is wanted meanwhile."""
        self._drawing = False
        self._shown = message.picture
        if message.picture.size == tuple(self.content_size):
            self._drawn = Text.from_ansi(message.ansi.rstrip("\n"), no_wrap=True)
            self.refresh()
        self._begin()

    def _draw(self) -> None:
        width, height = self.content_size
        if not self._curves or width < 16 or height < 4:
            self._wanted = None
            self.refresh()
            return
        self._wanted = Picture((width, height), self.app.theme, self._limit, dict(self._curves))
        self._begin()

    def _begin(self) -> None:
        if self._drawing or self._wanted is None or self._wanted == self._shown:
            return
        self._drawing = True
        self._plot(self._wanted)

    @work(thread=True, group="plot")
    def _plot(self, picture: Picture) -> None:
        self.post_message(PlotDrawn(draw(picture), picture))


def draw(picture: Picture) -> str:
    """A picture as ANSI text of its size. Steps lie across, up to the limit where it is known; losses up."""
    import plotext

    (columns, lines), theme = picture.size, picture.theme
    finite = {kind: [(s, v) for s, v in curve if math.isfinite(v)] for kind, curve in picture.curves.items()}
    most = max([picture.limit or 1, *(curve[-1][0] for curve in finite.values() if curve)])
    means = {kind: _means(curve, most, max(1, columns - _AXIS_CELLS)) for kind, curve in finite.items() if curve}
    if not means:
        return "No finite loss yet."
    values = [value for curve in means.values() for _, value in curve]
    low, high = min(values), max(values)
    with _PLOTEXT:
        figure = plotext.figure
        plotext.terminal.limit(False, False)
        figure.clear()
        figure.plot_size(columns, lines)
        figure.axes(False, axis="both", side="both")
        figure.axes(True, axis="both", side=0)
        plotext.add_theme(theme, text=_pixel(plotext, theme, "muted"))
        figure.theme(theme)
        places = [most * part / _TICKS for part in range(_TICKS + 1)]
        figure.ruler("x", 0).lim(0, most).ticks(places, [f"{place:,.0f}" for place in places])
        if high > low:
            heights = [low, (low + high) / 2, high]
            figure.ruler("y", 0).lim(low, high).ticks(heights, [_short_loss(height) for height in heights])
        for kind in ("raw", "protected"):
            if curve := means.get(kind):
                crosses = kind == "protected" and "raw" in means
                marker = plotext.marker(_CROSS if crosses else _LINE, _pixel(plotext, theme, kind))
                shown = curve[::_CELLS_A_CROSS] if crosses else curve
                signal = figure.signal([step for step, _ in shown], [value for _, value in shown], marker=marker)
                figure.draw(signal if crosses else signal.lines())
        return str(figure.build().string(colorless=is_colourless(theme)))


def _short_loss(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else loss(value)


def _means(curve: Curve, most: int, places: int) -> list[tuple[int, float]]:
    """At most one point, the mean, for each of `places` equal stretches of the steps up to `most`."""
    stretches: dict[int, list[tuple[int, float]]] = {}
    for step, value in curve:
        stretches.setdefault(step * places // (most + 1), []).append((step, value))
    return [(points[0][0], sum(value for _, value in points) / len(points)) for points in stretches.values()]


def _pixel(plotext: object, theme: str, name: str) -> object:
    colour = tone(theme, name).foreground or Color.parse("#888888")
    return plotext.pixel(foreground=(colour.r, colour.g, colour.b))  # type: ignore[attr-defined]
