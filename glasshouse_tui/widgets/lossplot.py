"""Both loss curves in one plot, drawn by plotext in a thread."""

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
from glasshouse_tui.messages import PlotDrawn, PlotSpec
from glasshouse_tui.theme import is_colourless, tone

Curve = Sequence[tuple[int, float]]

_PLOTEXT: Final = threading.Lock()
_LINE: Final = "braille"
_CROSS: Final = "x"
_CELLS_PER_CROSS: Final = 4
_AXIS_CELLS: Final = 8
_TICKS: Final = 4


class LossPlot(Widget):
    """Raw is a line and protected is crosses: where both segments have the same losses, the crosses are on the line."""

    DEFAULT_CSS = "LossPlot { height: 1fr; width: 1fr; }"
    ALLOW_SELECT = False

    def __init__(self) -> None:
        super().__init__()
        self._curves: dict[str, tuple[tuple[int, float], ...]] = {}
        self._limit: int | None = None
        self._drawn: Text | None = None
        self._requested: PlotSpec | None = None
        self._shown: PlotSpec | None = None
        self._drawing = False
        self._absent = "Losses appear with the first measured steps."

    @property
    def points(self) -> int:
        """The number of points per curve that fit the width."""
        return max(0, self.content_size.width - 8) * 2

    @property
    def is_drawn(self) -> bool:
        """True if the newest curves are displayed."""
        return self._requested is not None and self._requested == self._shown

    def show(self, curves: Mapping[str, Curve], *, limit: int | None = None, absent: str | None = None) -> None:
        """Replace the curves. `limit` is the number of planned steps; `absent` is shown if there are no curves."""
        if absent is not None:
            self._absent = absent
        self._limit = limit
        self._curves = {kind: tuple(curve) for kind, curve in curves.items() if curve}
        self._draw()

    def on_resize(self) -> None:
        """Draw for the new size."""
        self._draw()

    def on_mount(self) -> None:
        """Redraw when the theme changes."""
        self.app.theme_changed_signal.subscribe(self, lambda _theme: self._draw())

    def render(self) -> RenderResult:
        """The latest plot, or why there is none."""
        if not self._curves or self._drawn is None:
            return Content.assemble((self._absent, tone(self.app.theme, "muted")))
        return self._drawn

    def on_plot_drawn(self, message: PlotDrawn) -> None:
        """Show the plot, and begin the next one if another was requested meanwhile."""
        self._drawing = False
        self._shown = message.spec
        if message.spec.size == tuple(self.content_size):
            self._drawn = Text.from_ansi(message.ansi.rstrip("\n"), no_wrap=True)
            self.refresh()
        self._begin()

    def _draw(self) -> None:
        width, height = self.content_size
        if not self._curves or width < 16 or height < 4:
            self._requested = None
            self.refresh()
            return
        self._requested = PlotSpec((width, height), self.app.theme, self._limit, dict(self._curves))
        self._begin()

    def _begin(self) -> None:
        if self._drawing or self._requested is None or self._requested == self._shown:
            return
        self._drawing = True
        self._plot(self._requested)

    @work(thread=True, group="plot")
    def _plot(self, spec: PlotSpec) -> None:
        self.post_message(PlotDrawn(draw(spec), spec))


def draw(spec: PlotSpec) -> str:
    """The plot as ANSI text. The x axis is steps, up to the limit if it is known; the y axis is the loss."""
    import plotext

    (columns, lines), theme = spec.size, spec.theme
    finite = {kind: [(s, v) for s, v in curve if math.isfinite(v)] for kind, curve in spec.curves.items()}
    most = max([spec.limit or 1, *(curve[-1][0] for curve in finite.values() if curve)])
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
        ticks = [most * part / _TICKS for part in range(_TICKS + 1)]
        figure.ruler("x", 0).lim(0, most).ticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        if high > low:
            heights = [low, (low + high) / 2, high]
            figure.ruler("y", 0).lim(low, high).ticks(heights, [_short_loss(height) for height in heights])
        for kind in ("raw", "protected"):
            if curve := means.get(kind):
                crosses = kind == "protected" and "raw" in means
                marker = plotext.marker(_CROSS if crosses else _LINE, _pixel(plotext, theme, kind))
                shown = curve[::_CELLS_PER_CROSS] if crosses else curve
                signal = figure.signal([step for step, _ in shown], [value for _, value in shown], marker=marker)
                figure.draw(signal if crosses else signal.lines())
        return str(figure.build().string(colorless=is_colourless(theme)))


def _short_loss(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else loss(value)


def _means(curve: Curve, most: int, intervals: int) -> list[tuple[int, float]]:
    """The mean loss, with its first step, of each of `intervals` equal intervals of the steps up to `most`."""
    points_by_interval: dict[int, list[tuple[int, float]]] = {}
    for step, value in curve:
        points_by_interval.setdefault(step * intervals // (most + 1), []).append((step, value))
    return [(points[0][0], sum(value for _, value in points) / len(points)) for points in points_by_interval.values()]


def _pixel(plotext: object, theme: str, name: str) -> object:
    colour = tone(theme, name).foreground or Color.parse("#888888")
    return plotext.pixel(foreground=(colour.r, colour.g, colour.b))  # type: ignore[attr-defined]
