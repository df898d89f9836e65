"""The stages of one segment: a shape, a word and a time each, and the reason of the selected one below."""

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
from glasshouse_tui.state_styles import POINTER, StateStyle, state_style
from glasshouse_tui.widgets.paint import Line, Span, content_of, fit, line, width_of

_MIN_CELL_WIDTH: Final = 17
_MIN_COLUMNS: Final = 3
_MAX_COLUMNS: Final = 5
_GAP: Final = 2


class StageRow(Widget, can_focus=True):
    """Several lines with words and times where there is room, else one line of shapes.

    The current stage is selected until the operator selects another with the arrow keys or a click.
    """

    DEFAULT_CSS = "StageRow { height: auto; width: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(STAGES)]
    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._stages: tuple[Stage, ...] = ()
        self._selected: int | None = None
        self._absent = ""
        self._drawn: list[Line] = []

    @property
    def selected(self) -> Stage | None:
        """The stage whose reason is shown."""
        index = self._index()
        return self._stages[index] if index is not None else None

    def show(self, stages: Sequence[Stage], absent: str = "") -> None:
        """Replace the stages; `absent` is shown if there are none."""
        new_stages = tuple(stages)
        if new_stages == self._stages and absent == self._absent:
            return
        resized = len(new_stages) != len(self._stages)
        self._stages, self._absent = new_stages, absent
        if self._selected is not None and self._selected >= len(new_stages):
            self._selected = None
        if resized:
            self.refresh(layout=True)
        elif self._lines() != self._drawn:
            self.refresh()

    def select(self, index: int | None) -> None:
        """Select the stage at `index`, to show its reason; None follows the current stage."""
        self._selected = None if index is None or not self._stages else max(0, min(index, len(self._stages) - 1))
        self.refresh()

    def action_stage(self, step: int) -> None:
        """Select the previous or the next stage."""
        index = self._index()
        self.select(None if index is None else index + step)

    def on_blur(self) -> None:
        """Follow the current stage again."""
        self.select(None)

    def on_click(self, event: events.Click) -> None:
        """Select the stage that was clicked."""
        columns = self._columns(self.size.width)
        if columns:
            column = min(columns - 1, event.x // (self._cell_width(columns) + _GAP))
            self.select(min(event.y * columns + column, len(self._stages) - 1))
        elif event.y == 0:
            self.select(event.x // 2)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The number of lines: those of the stages, and one for the reason."""
        columns = self._columns(width)
        return (-(-len(self._stages) // columns) if columns and self._stages else 1) + 1

    def render(self) -> RenderResult:
        """The stages, and the reason of the selected one."""
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
        """How many stages fit in one line with words; 0 means shapes only."""
        columns = min(_MAX_COLUMNS, (width + _GAP) // (_MIN_CELL_WIDTH + _GAP))
        return columns if columns >= _MIN_COLUMNS else 0

    def _cell_width(self, columns: int) -> int:
        return (self.content_size.width + _GAP) // columns - _GAP

    def _index(self) -> int | None:
        if not self._stages:
            return None
        if self._selected is not None:
            return self._selected
        current = [index for index, stage in enumerate(self._stages) if stage.status in ("current", "failed")]
        passed = [index for index, stage in enumerate(self._stages) if stage.status == "passed"]
        return current[-1] if current else passed[-1] if passed else 0

    def _grid(self, columns: int) -> list[Line]:
        rows: list[Line] = []
        for first in range(0, len(self._stages), columns):
            spans: list[Span] = []
            for index in range(first, min(first + columns, len(self._stages))):
                spans.extend(self._cell(index, self._cell_width(columns)))
                spans.append((" " * _GAP, "plain"))
            rows.append(tuple(spans))
        return rows

    def _cell(self, index: int, width: int) -> Line:
        stage = self._stages[index]
        style = _stage_style(stage)
        selected = self.has_focus and index == self._index()
        tone = "accent" if selected else "strong" if stage.status == "current" else _word_tone(stage)
        shape = (f"{POINTER if selected else style.shape} ", "accent" if selected else style.tone)
        left = line(shape, (stage.name, tone))
        time = duration(stage.seconds) if stage.seconds is not None else ""
        return (*fit(left, width - len(time)), (time, "muted"))

    def _shapes(self) -> Line:
        spans: list[Span] = []
        for index, stage in enumerate(self._stages):
            style = _stage_style(stage)
            selected = self.has_focus and index == self._index()
            spans += [(POINTER if selected else style.shape, "accent" if selected else style.tone), (" ", "plain")]
        return tuple(spans)

    def _detail(self) -> Line:
        stage = self.selected
        if stage is None:
            return ()
        style = _stage_style(stage)
        spans = line((stage.name, "strong"))
        if self._columns(self.content_size.width) == 0:
            spans = line((f"{style.shape} ", style.tone)) + spans
        if stage.status in ("waiting", "skipped"):
            return spans + line(("  not reached", "muted"))
        if stage.seconds is not None:
            spans += line((f"  {duration(stage.seconds)}", "plain"))
        if stage.reason:
            spans += line((f"  {plain(stage.reason)}", "bad" if stage.status == "failed" else "muted"))
        if stage.since and width_of(spans) < 40:
            spans += line((f"  {'at' if stage.name == 'done' else 'since'} {clock(stage.since)}", "muted"))
        return spans


def _stage_style(stage: Stage) -> StateStyle:
    """The style of a stage; a pending segment is waiting, not in progress."""
    waits = stage.name == "pending" and stage.status == "current"
    return state_style("segment", "pending") if waits else state_style("stage", stage.status)


def _word_tone(stage: Stage) -> str:
    return {"passed": "plain", "failed": "bad"}.get(stage.status, "muted")
