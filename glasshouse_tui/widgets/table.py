"""A table that draws only the visible lines, however many rows it has."""

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

from engine.system.text import visible
from glasshouse_tui.bindings import TABLES, bindings_for
from glasshouse_tui.state_styles import POINTER
from glasshouse_tui.theme import tone
from glasshouse_tui.widgets.paint import Line, fit

_GUTTER: Final = 2
_GAP: Final = 2


@dataclass(frozen=True)
class Column:
    """A column. `width` is its minimum width in cells, `flex` its share of the spare width. When the table is narrow,
    columns with the highest `drop` go first; 0 is never dropped."""

    key: str
    title: str
    width: int
    align: str = "left"
    flex: int = 0
    drop: int = 0


@dataclass(frozen=True)
class Row:
    """A row: a key that is stable across updates, and a line per column key."""

    key: str
    cells: dict[str, Line]


class RowTable(Widget, can_focus=True):
    """Rows with a cursor. When its owner replaces the rows, the cursor stays on the same key."""

    DEFAULT_CSS = "RowTable { height: 1fr; width: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(TABLES)]
    ALLOW_SELECT = False

    class Moved(Message):
        """The cursor moved to another row. `key` is None if the table is now empty."""

        def __init__(self, table: RowTable, key: str | None) -> None:
            super().__init__()
            self.table = table
            self.key = key

        @property
        def control(self) -> RowTable:
            """The table."""
            return self.table

    class Opened(Moved):
        """The row under the cursor was clicked again."""

    class EdgeReached(Message):
        """The cursor was moved past the first (`step` -1) or last row (`step` 1); `whole`: to the end of all rows."""

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
        """`follow` keeps the cursor on the last row as rows are added, once it is there."""
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
        """The rows held by the table."""
        return self._rows

    @property
    def cursor(self) -> int:
        """The index of the row under the cursor."""
        return self._cursor

    @property
    def cursor_key(self) -> str | None:
        """The key of the row under the cursor."""
        return self._rows[self._cursor].key if self._rows else None

    @property
    def following(self) -> bool:
        """True while the cursor follows rows added at the end."""
        return self._follow and self._cursor >= len(self._rows) - 1

    def show(self, rows: Sequence[Row], *, cursor: str | None = None) -> None:
        """Replace the rows. The cursor goes to the key `cursor`, else stays on its key, else at its index."""
        new_rows = tuple(rows)
        key = cursor if cursor is not None else self.cursor_key
        if new_rows == self._rows and key == self.cursor_key:
            return
        before, offset = self.cursor_key, self._cursor - self._top
        following = self.following
        indices = {row.key: index for index, row in enumerate(new_rows)}
        self._rows = new_rows
        if following and cursor is None:
            self._cursor = max(0, len(new_rows) - 1)
        else:
            self._cursor = indices.get(key or "", min(self._cursor, max(0, len(new_rows) - 1)))
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

    def move_to(self, index: int) -> None:
        """Move the cursor to an index; past either end, request more rows from the owner."""
        if not self._rows:
            return
        if index < 0 or index >= len(self._rows):
            self.post_message(self.EdgeReached(self, -1 if index < 0 else 1))
        bounded = min(len(self._rows) - 1, max(0, index))
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
        """Move by one screen, less one line."""
        self.move_to(self._cursor + step * max(1, self._body_height - 1))

    def action_edge(self, step: int) -> None:
        """Move to the first or last of all rows."""
        self.post_message(self.EdgeReached(self, step, whole=True))
        self.move_to(0 if step < 0 else max(0, len(self._rows) - 1))

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self._clamp()
        self.refresh()

    def on_focus(self) -> None:
        """Redraw the row under the cursor, which differs with the focus."""
        self._refresh_rows(self._cursor)

    def on_blur(self) -> None:
        """Redraw the row under the cursor, which differs without the focus."""
        self._refresh_rows(self._cursor)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Move the cursor by the mouse wheel."""
        event.stop()
        self.action_move(3)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Move the cursor by the mouse wheel."""
        event.stop()
        self.action_move(-3)

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the row clicked, open it on the second click, or sort by the column title clicked."""
        if self._header and event.y == 0:
            if column := self._column_at(event.x):
                self.post_message(self.HeaderClicked(self, column))
            return
        index = self._top + event.y - int(self._header)
        if 0 <= index < len(self._rows):
            if index == self._cursor and event.chain > 1:
                self.post_message(self.Opened(self, self.cursor_key))
            self.move_to(index)

    def render_line(self, y: int) -> Strip:
        """The line at `y`: the titles, a row, or a blank."""
        width = self.size.width
        base = self.visual_style.rich_style
        layout = self._layout(width)
        context = (width, self.app.theme, self.has_focus, base)
        if context != self._strip_context:
            self._strip_context = context
            self._strips.clear()
        if self._header and y == 0:
            return self._titles(layout, base)
        index = self._top + y - int(self._header)
        if not 0 <= index < len(self._rows):
            return Strip.blank(width, base)
        row = self._rows[index]
        kind = "" if index != self._cursor else "focus" if self.has_focus else "blur"
        cached = self._strips.get((row.key, kind))
        if cached and cached[0] is row:
            return cached[1]
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

    def _refresh_rows(self, *indices: int) -> None:
        for index in indices:
            y = index - self._top + int(self._header)
            if 0 <= y < self.size.height:
                self.refresh(Region(0, y, self.size.width, 1))

    def _layout(self, width: int) -> list[tuple[Column, int]]:
        """The columns that fit, each with its width."""
        room = width - _GUTTER
        kept = list(self._columns)
        for column in sorted((c for c in self._columns if c.drop), key=lambda c: -c.drop):
            if sum(c.width + _GAP for c in kept) - _GAP <= room:
                break
            kept.remove(column)
        spare = max(0, room - sum(c.width + _GAP for c in kept) + _GAP)
        shares = sum(c.flex for c in kept)
        return [(c, c.width + (spare * c.flex // shares if shares else 0)) for c in kept]

    def _column_at(self, x: int) -> str | None:
        left = _GUTTER
        for column, width in self._layout(self.size.width):
            if left <= x < left + width + _GAP:
                return column.key
            left += width + _GAP
        return None

    def _titles(self, layout: list[tuple[Column, int]], base: RichStyle) -> Strip:
        style = base + tone(self.app.theme, "muted").rich_style
        sorted_style = base + tone(self.app.theme, "accent").rich_style
        segments = [Segment(" " * _GUTTER, base)]
        for position, (column, width) in enumerate(layout):
            title, title_style = column.title, style
            if self._sort and self._sort[0] == column.key:
                title, title_style = f"{title}{'↓' if self._sort[1] else '↑'}", sorted_style
            text = "".join(part for part, _ in fit(((title, "muted"),), width, align=column.align))
            segments.append(Segment(text, title_style))
            if position < len(layout) - 1:
                segments.append(Segment(" " * _GAP, base))
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def _draw(self, row: Row, layout: list[tuple[Column, int]], base: RichStyle, kind: str) -> Strip:
        theme = self.app.theme
        if kind:
            base += self.get_component_rich_style(f"table--{kind}", partial=True)
        segments = [Segment(POINTER if kind else " ", base + tone(theme, "accent").rich_style), Segment(" ", base)]
        for position, (column, width) in enumerate(layout):
            for text, name in fit(row.cells.get(column.key, ()), width, align=column.align):
                segments.append(Segment(visible(text), base + tone(theme, name).rich_style))
            if position < len(layout) - 1:
                segments.append(Segment(" " * _GAP, base))
        return Strip(segments).adjust_cell_length(self.size.width, base)

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--focus", "table--blur"}
