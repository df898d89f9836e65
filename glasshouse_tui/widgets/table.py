"""A table that draws only the lines on screen, whatever the number of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style as RichStyle
from textual import events
from textual.binding import BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from glasshouse_tui.bindings import TABLES, bindings_for
from glasshouse_tui.state_styles import POINTER
from glasshouse_tui.theme import tone
from glasshouse_tui.widgets.paint import Line, fit

_GUTTER: Final = 2
_GAP: Final = 2


@dataclass(frozen=True)
class Column:
    """A column. `width` is its least width in cells; `flex` its part of what is left over; `drop` ranks what goes
    first when the table is narrow (0 stays)."""

    key: str
    title: str
    width: int
    align: str = "left"
    flex: int = 0
    drop: int = 0


@dataclass(frozen=True)
class Row:
    """A row: a key that is stable over updates, and a line for each column's key."""

    key: str
    cells: dict[str, Line]


class RowTable(Widget, can_focus=True):
    """A cursor over rows. The owner gives it rows; it keeps the cursor on the same key when they change."""

    DEFAULT_CSS = "RowTable { height: 1fr; width: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(TABLES)]
    ALLOW_SELECT = False

    class Moved(Message):
        """The cursor is on another row. `key` is None when the table became empty."""

        def __init__(self, table: RowTable, key: str | None) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> RowTable:
            """The table."""
            return self.table

    class Opened(Moved):
        """A row was clicked that already had the cursor."""

    class EdgeReached(Message):
        """A move wants rows beyond the first (`step` -1) or last (`step` 1); `whole`: to the very end."""

        def __init__(self, table: RowTable, step: int, *, whole: bool = False) -> None:
            super().__init__()
            self.table = table
            self.step = step
            self.whole = whole

        @property
        def control(self) -> RowTable:
            """The table."""
            return self.table

    class HeaderClicked(Message):
        """The title of a column was clicked."""

        def __init__(self, table: RowTable, column: str) -> None:
            super().__init__()
            self.table = table
            self.column = column

        @property
        def control(self) -> RowTable:
            """The table."""
            return self.table

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        id: str | None = None,  # noqa: A002
        header: bool = True,
        follow: bool = False,
    ) -> None:
        """`follow` keeps the cursor on the last row for as long as it is there."""
        super().__init__(id=id)
        self._columns = tuple(columns)
        self._header = header
        self._follow = follow
        self._rows: tuple[Row, ...] = ()
        self._cursor = 0
        self._top = 0
        self._sort: tuple[str, bool] | None = None
        self._strips: dict[tuple[str, str], tuple[Row, Strip]] = {}
        self._strip_context: tuple[object, ...] = ()

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows that the table holds."""
        return self._rows

    @property
    def cursor(self) -> int:
        """The cursor's place among the rows."""
        return self._cursor

    @property
    def cursor_key(self) -> str | None:
        """The key of the row under the cursor."""
        return self._rows[self._cursor].key if self._rows else None

    @property
    def following(self) -> bool:
        """True while new rows at the end move the cursor along."""
        return self._follow and self._cursor >= len(self._rows) - 1

    def show(self, rows: Sequence[Row], *, cursor: str | None = None) -> None:
        """Replace the rows. The cursor goes to the key `cursor`, else stays on its key, else on its place."""
        fresh = tuple(rows)
        wanted = cursor if cursor is not None else self.cursor_key
        if fresh == self._rows and wanted == self.cursor_key:
            return
        before, offset = self.cursor_key, self._cursor - self._top
        following = self.following
        places = {row.key: place for place, row in enumerate(fresh)}
        self._rows = fresh
        if following and cursor is None:
            self._cursor = max(0, len(fresh) - 1)
        else:
            self._cursor = places.get(wanted or "", min(self._cursor, max(0, len(fresh) - 1)))
        self._top = self._cursor - offset
        self._clamp()
        self.refresh()
        if self.cursor_key != before:
            self.post_message(self.Moved(self, self.cursor_key))

    def show_sort(self, column: str, *, descending: bool) -> None:
        """Mark the column that the rows are sorted by."""
        self._sort = (column, descending)
        self._strip_context = ()
        self.refresh()

    def move_to(self, place: int) -> None:
        """Put the cursor on a place; beyond an end it asks the owner for more rows."""
        if not self._rows:
            return
        if place < 0 or place >= len(self._rows):
            self.post_message(self.EdgeReached(self, -1 if place < 0 else 1))
        bounded = min(len(self._rows) - 1, max(0, place))
        if bounded == self._cursor:
            return
        before, top = self._cursor, self._top
        self._cursor = bounded
        self._clamp()
        if self._top == top:
            self._refresh_rows(before, bounded)
        else:
            self.refresh()
        self.post_message(self.Moved(self, self.cursor_key))

    def action_move(self, step: int) -> None:
        """Move by lines."""
        self.move_to(self._cursor + step)

    def action_page(self, step: int) -> None:
        """Move by what fits on the screen, less one line."""
        self.move_to(self._cursor + step * max(1, self._body_height - 1))

    def action_edge(self, step: int) -> None:
        """Move to the first or last row of all."""
        self.post_message(self.EdgeReached(self, step, whole=True))
        self.move_to(0 if step < 0 else max(0, len(self._rows) - 1))

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self._clamp()
        self.refresh()

    def on_focus(self) -> None:
        """The cursor's row looks different with the focus."""
        self._refresh_rows(self._cursor)

    def on_blur(self) -> None:
        """The cursor's row looks different without the focus."""
        self._refresh_rows(self._cursor)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel moves the cursor."""
        event.stop()
        self.action_move(3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel moves the cursor."""
        event.stop()
        self.action_move(-3)

    def on_click(self, event: events.Click) -> None:
        """A click puts the cursor there; a second one opens; one on a title sorts."""
        if self._header and event.y == 0:
            if column := self._column_at(event.x):
                self.post_message(self.HeaderClicked(self, column))
            return
        place = self._top + event.y - int(self._header)
        if 0 <= place < len(self._rows):
            if place == self._cursor and event.chain > 1:
                self.post_message(self.Opened(self, self.cursor_key))
            self.move_to(place)

    def render_line(self, y: int) -> Strip:
        """The line at `y`: titles, a row, or nothing."""
        width = self.size.width
        base = self.visual_style.rich_style
        layout = self._layout(width)
        context = (width, self.app.theme, self.has_focus, base)
        if context != self._strip_context:
            self._strip_context = context
            self._strips.clear()
        if self._header and y == 0:
            return self._titles(layout, base)
        place = self._top + y - int(self._header)
        if not 0 <= place < len(self._rows):
            return Strip.blank(width, base)
        row = self._rows[place]
        kind = "" if place != self._cursor else "focus" if self.has_focus else "blur"
        known = self._strips.get((row.key, kind))
        if known and known[0] is row:
            return known[1]
        strip = self._draw(row, layout, base, kind)
        if len(self._strips) > 512:
            self._strips.clear()
        self._strips[row.key, kind] = (row, strip)
        return strip

    @property
    def _body_height(self) -> int:
        return max(1, self.size.height - int(self._header))

    def _clamp(self) -> None:
        body = self._body_height
        self._top = max(self._top, self._cursor - body + 1)
        self._top = min(self._top, self._cursor, max(0, len(self._rows) - body))
        self._top = max(0, self._top)

    def _refresh_rows(self, *places: int) -> None:
        for place in places:
            y = place - self._top + int(self._header)
            if 0 <= y < self.size.height:
                self.refresh(Region(0, y, self.size.width, 1))

    def _layout(self, width: int) -> list[tuple[Column, int]]:
        """The columns that fit, with their widths."""
        room = width - _GUTTER
        kept = list(self._columns)
        for column in sorted((c for c in self._columns if c.drop), key=lambda c: -c.drop):
            if sum(c.width + _GAP for c in kept) - _GAP <= room:
                break
            kept.remove(column)
        spare = max(0, room - sum(c.width + _GAP for c in kept) + _GAP)
        parts = sum(c.flex for c in kept)
        return [(c, c.width + (spare * c.flex // parts if parts else 0)) for c in kept]

    def _column_at(self, x: int) -> str | None:
        left = _GUTTER
        for column, width in self._layout(self.size.width):
            if left <= x < left + width + _GAP:
                return column.key
            left += width + _GAP
        return None

    def _titles(self, layout: list[tuple[Column, int]], base: RichStyle) -> Strip:
        style = base + tone(self.app.theme, "muted").rich_style
        marked = base + tone(self.app.theme, "accent").rich_style
        segments = [Segment(" " * _GUTTER, base)]
        for place, (column, width) in enumerate(layout):
            title, chosen = column.title, style
            if self._sort and self._sort[0] == column.key:
                title, chosen = f"{title}{'↓' if self._sort[1] else '↑'}", marked
            text = "".join(part for part, _ in fit(((title, "muted"),), width, align=column.align))
            segments.append(Segment(text, chosen))
            if place < len(layout) - 1:
                segments.append(Segment(" " * _GAP, base))
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def _draw(self, row: Row, layout: list[tuple[Column, int]], base: RichStyle, kind: str) -> Strip:
        theme = self.app.theme
        if kind:
            base += self.get_component_rich_style(f"table--{kind}", partial=True)
        segments = [Segment(POINTER if kind else " ", base + tone(theme, "accent").rich_style), Segment(" ", base)]
        for place, (column, width) in enumerate(layout):
            for text, name in fit(row.cells.get(column.key, ()), width, align=column.align):
                segments.append(Segment(text, base + tone(theme, name).rich_style))
            if place < len(layout) - 1:
                segments.append(Segment(" " * _GAP, base))
        return Strip(segments).adjust_cell_length(self.size.width, base)

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--focus", "table--blur"}
