"""The dialog that asks how long to keep an allocation, and shows what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from engine.plan import MAX_KEEP_MINUTES
from glasshouse_tui.format import money, plain
from glasshouse_tui.widgets.paint import Line, Lines, line

if TYPE_CHECKING:
    from engine.store.views import AllocationView

DEFAULT_MINUTES: Final = 30


class KeepScreen(ModalScreen["int | None"]):
    """Returns the minutes, or None to keep nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "close", "Go back")]

    def __init__(self, allocation: AllocationView) -> None:
        super().__init__()
        self._allocation = allocation

    def compose(self) -> ComposeResult:
        """The question, the minutes, their cost, the two keys."""
        with Vertical(classes="dialog", id="keep"):
            yield Lines([line((f"Keep {plain(self._allocation.name, 60)} for a later run?", "strong"))])
            yield Input(str(DEFAULT_MINUTES), type="integer", max_length=6, id="minutes")
            yield Lines(id="keep-cost", classes="wraps")
            yield Lines([(), line((" ⏎ ", "key"), (" keep it     ", "plain"), (" esc ", "key"), (" go back", "plain"))])

    def on_mount(self) -> None:
        """Label the field and show the cost of the default."""
        field = self.query_one("#minutes", Input)
        field.border_title = "minutes"
        field.focus()
        self._show_cost(field.value)

    def on_input_changed(self, message: Input.Changed) -> None:
        """Show the cost of the minutes typed."""
        self._show_cost(message.value)

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Close with the minutes if they are valid."""
        minutes = _minutes(message.value)
        if minutes is not None:
            self.dismiss(minutes)

    def action_close(self) -> None:
        """Close without keeping."""
        self.dismiss(None)

    def _show_cost(self, typed: str) -> None:
        self.query_one("#keep-cost", Lines).show([cost_line(_minutes(typed), self._allocation.price_per_hour)])


def _minutes(typed: str) -> int | None:
    """A valid number of minutes, or None."""
    minutes = int(typed) if typed.isdecimal() else 0
    return minutes if 0 < minutes <= MAX_KEEP_MINUTES else None


def cost_line(minutes: int | None, price_per_hour: float | None) -> Line:
    """What it costs to keep an allocation for this long."""
    if minutes is None:
        return line((f"Enter a number of minutes from 1 to {MAX_KEEP_MINUTES:,}.", "warn"))
    if price_per_hour is None:
        return line(("Its price is unknown. It is terminated afterwards, unless a run uses it.", "warn"))
    cost = money(price_per_hour * minutes / 60)
    return line(
        (f"At {money(price_per_hour)} an hour this costs up to {cost}. ", "plain"),
        ("It is terminated afterwards, unless a run uses it.", "muted"),
    )
