"""Lines of toned spans, with which all widgets draw independently of the theme."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size
from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from engine.system.text import visible
from glasshouse_tui.theme import tone

Span = tuple[str, str]
"""A text and the name of its tone."""

Line = tuple[Span, ...]
"""One line of spans from left to right."""

_ELLIPSIS: Final = "…"


def line(*parts: Span | str) -> Line:
    """A line from spans; a bare string has the tone `plain`."""
    return tuple((part, "plain") if isinstance(part, str) else part for part in parts)


def width_of(spans: Line) -> int:
    """The width of a line on screen, in cells."""
    return sum(cell_len(text) for text, _ in spans)


def fit(spans: Line, width: int, *, align: str = "left") -> Line:
    """The line at exactly `width` cells: padded opposite to `align`, or cut with an ellipsis."""
    used = width_of(spans)
    if used <= width:
        gap = ((" " * (width - used), "plain"),)
        if width == used:
            return spans
        return gap + spans if align == "right" else spans + gap
    kept: list[Span] = []
    room = width - 1
    for text, name in spans:
        cells = cell_len(text)
        if cells > room:
            cut = set_cell_size(text, room)
            kept.append((cut + _ELLIPSIS, name))
            break
        kept.append((text, name))
        room -= cells
    return tuple(kept) if width > 0 else ()


def spread(left: Line, right: Line, width: int) -> Line:
    """`left` and `right` at the two ends of `width` cells; `left` is cut if they would overlap."""
    room = width - width_of(right)
    if room < 2:
        return fit(left + line(" ") + right, width)
    return fit(left, room - 1) + line(" ") + right


def bar(share: float | None, width: int, name: str) -> Line:
    """A progress bar: a heavy line for the part done, a light one for the rest, so that it needs no colour."""
    if width <= 0:
        return ()
    if share is None:
        return ((" " * width, "faint"),)
    halves = round(min(1.0, max(0.0, share)) * width * 2)
    full, half = divmod(halves, 2)
    spans: list[Span] = []
    if full:
        spans.append(("━" * full, name))
    if half:
        spans.append(("╸", name))
    if rest := width - full - half:
        spans.append(("─" * rest, "faint"))
    return tuple(spans)


def content_of(lines: Iterable[Line], theme: str) -> Content:
    """Lines as Textual content in a theme."""
    drawn = [Content.assemble(*((visible(text), tone(theme, name)) for text, name in spans if text)) for spans in lines]
    return Content("\n").join(drawn)


class Lines(Widget):
    """A block of lines that its owner lays out for the available width; redrawn only when they change."""

    DEFAULT_CSS = "Lines { height: auto; width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(
        self,
        lines: Sequence[Line] = (),
        *,
        id: str | None = None,  # noqa: A002
        classes: str | None = None,
    ) -> None:
        super().__init__(id=id, classes=classes)
        self._lines: tuple[Line, ...] = tuple(lines)

    @property
    def lines(self) -> tuple[Line, ...]:
        """The lines shown."""
        return self._lines

    @property
    def plain_text(self) -> str:
        """The lines shown, as plain text."""
        return "\n".join("".join(text for text, _ in spans) for spans in self._lines)

    def show(self, lines: Iterable[Line]) -> None:
        """Replace the lines."""
        new_lines = tuple(lines)
        if new_lines == self._lines:
            return
        resized = len(new_lines) != len(self._lines)
        self._lines = new_lines
        self.refresh(layout=resized)

    def render(self) -> RenderResult:
        """The lines in the app's theme."""
        return content_of(self._lines, self.app.theme)
