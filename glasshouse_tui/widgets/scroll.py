"""A panel that scrolls with the same keys as the tables."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import BindingType
from textual.containers import VerticalScroll

from glasshouse_tui.bindings import TABLES, bindings_for


class ScrollPanel(VerticalScroll):
    """A scrollable panel of lines."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(TABLES)]

    def action_move(self, step: int) -> None:
        """Scroll by lines."""
        self.scroll_relative(y=step, animate=False)

    def action_page(self, step: int) -> None:
        """Scroll by one screen, less one line."""
        self.scroll_relative(y=step * max(1, self.size.height - 1), animate=False)

    def action_edge(self, step: int) -> None:
        """Scroll to the first or last line."""
        if step < 0:
            self.scroll_home(animate=False)
        else:
            self.scroll_end(animate=False)
