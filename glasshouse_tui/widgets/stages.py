"""The stages of one segment as a row: a shape, a word and a time each; the chosen one with its reason below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from textual import events
from textual.app import RenderResult
from textual.binding import BindingType
from textual.geometry import Size
from textual.widget import Widget

from glasshouse_tui.bindings import STAGES, bindings_for
from glasshouse_tui.format import clock, duration, plain
from glasshouse_tui.run_metrics import Stage
from glasshouse_tui.state_styles import POINTER, Look, look
from glasshouse_tui.widgets.paint import Line, Span, content_of, fit, line, width_of

_LEAST_CELL: Final = 17
_LEAST_COLUMNS: Final = 3
_MOST_COLUMNS: Final = 5
_GAP: Final = 2


class StageRow(Widget, can_focus=True):
    """Laid out over several lines where there is room for words and times, as shapes alone where there is not.

    It shows the stage at work until somebody chooses another with the arrow keys or a click.
    """

    DEFAULT_CSS = "StageRow { height: auto; width: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(STAGES)]
    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._stages: tuple[Stage, ...] = ()
        self._chosen: int | None = None
        self._absent = ""
        self._drawn: list[Line] = []

    @property
    def chosen(self) -> Stage | None:
        """The stage whose reason is shown."""
        place = self._place()
        return self._stages[place] if place is not None else None

    def show(self, stages: Sequence[Stage], absent: str = "") -> None:
        """Replace the stages; `absent` is said where there are none."""
        fresh = tuple(stages)
        if fresh == self._stages and absent == self._absent:
            return
        grown = len(fresh) != len(self._stages)
        self._stages, self._absent = fresh, absent
        if self._chosen is not None and self._chosen >= len(fresh):
            self._chosen = None
        if grown:
            self.refresh(layout=True)
        elif self._lines() != self._drawn:
            self.refresh()

    def choose(self, place: int | None) -> None:
        """Show the reason of the stage at `place`; None follows the stage at work."""
        self._chosen = None if place is None or not self._stages else max(0, min(place, len(self._stages) - 1))
        self.refresh()

    def action_stage(self, step: int) -> None:
        """Move to the stage before or after."""
        place = self._place()
        self.choose(None if place is None else place + step)

    def on_blur(self) -> None:
        """Follow the stage at work again."""
        self.choose(None)

    def on_click(self, event: events.Click) -> None:
        """Choose the stage that was clicked."""
        columns = self._columns(self.size.width)
        if columns:
            column = min(columns - 1, event.x // (self._cell_width(columns) + _GAP))
            self.choose(min(event.y * columns + column, len(self._stages) - 1))
        elif event.y == 0:
            self.choose(event.x // 2)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Lines for the stages and one for the chosen one's reason."""
        columns = self._columns(width)
        return (-(-len(self._stages) // columns) if columns and self._stages else 1) + 1

    def render(self) -> RenderResult:
        """The stages and the chosen one's reason."""
        self._drawn = self._lines()
        return content_of(self._drawn, self.app.theme)

    def _lines(self) -> list[Line]:
        if not self._stages:
            return [line((self._absent, "muted"))]
        width = self.content_size.width
        columns = self._columns(width)
        rows = self._grid(columns) if columns else [self._shapes()]
        return [*rows, fit(self._detail(), width)]

    def _columns(self, width: int) -> int:
        """How many stages stand beside each other with words; 0 is shapes alone."""
        columns = min(_MOST_COLUMNS, (width + _GAP) // (_LEAST_CELL + _GAP))
        return columns if columns >= _LEAST_COLUMNS else 0

    def _cell_width(self, columns: int) -> int:
        return (self.content_size.width + _GAP) // columns - _GAP

    def _place(self) -> int | None:
        if not self._stages:
            return None
        if self._chosen is not None:
            return self._chosen
        known = [place for place, stage in enumerate(self._stages) if stage.status in ("current", "failed")]
        passed = [place for place, stage in enumerate(self._stages) if stage.status == "passed"]
        return known[-1] if known else passed[-1] if passed else 0

    def _grid(self, columns: int) -> list[Line]:
        rows: list[Line] = []
        for first in range(0, len(self._stages), columns):
            spans: list[Span] = []
            for place in range(first, min(first + columns, len(self._stages))):
                spans.extend(self._cell(place, self._cell_width(columns)))
                spans.append((" " * _GAP, "plain"))
            rows.append(tuple(spans))
        return rows

    def _cell(self, place: int, width: int) -> Line:
        stage = self._stages[place]
        shown = _look(stage)
        chosen = self.has_focus and place == self._place()
        name = "accent" if chosen else "strong" if stage.status == "current" else _word_tone(stage)
        left = line((f"{POINTER if chosen else shown.shape} ", "accent" if chosen else shown.tone), (stage.name, name))
        time = duration(stage.seconds) if stage.seconds is not None else ""
        return (*fit(left, width - len(time)), (time, "muted"))

    def _shapes(self) -> Line:
        spans: list[Span] = []
        for place, stage in enumerate(self._stages):
            shown = _look(stage)
            chosen = self.has_focus and place == self._place()
            spans += [(POINTER if chosen else shown.shape, "accent" if chosen else shown.tone), (" ", "plain")]
        return tuple(spans)

    def _detail(self) -> Line:
        stage = self.chosen
        if stage is None:
            return ()
        shown = _look(stage)
        spans = line((stage.name, "strong"))
        if self._columns(self.content_size.width) == 0:
            spans = line((f"{shown.shape} ", shown.tone)) + spans
        if stage.status in ("waiting", "skipped"):
            return spans + line(("  not reached", "muted"))
        if stage.seconds is not None:
            spans += line((f"  {duration(stage.seconds)}", "plain"))
        if stage.reason:
            spans += line((f"  {plain(stage.reason)}", "bad" if stage.status == "failed" else "muted"))
        if stage.since and width_of(spans) < 40:
            spans += line((f"  {'at' if stage.name == 'done' else 'since'} {clock(stage.since)}", "muted"))
        return spans


def _look(stage: Stage) -> Look:
    """A pending segment waits; it is not at work."""
    waits = stage.name == "pending" and stage.status == "current"
    return look("segment", "pending") if waits else look("stage", stage.status)


def _word_tone(stage: Stage) -> str:
    return {"passed": "plain", "failed": "bad"}.get(stage.status, "muted")
