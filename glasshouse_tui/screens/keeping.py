"""The question for how long an allocation is kept, with what that costs."""

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
    """Minutes, or None when nothing is to be kept."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave it")]

    def __init__(self, allocation: AllocationView) -> None:
        super().__init__()
        self._allocation = allocation

    def compose(self) -> ComposeResult:
        """The question, the minutes, what they cost, the two keys."""
        with Vertical(classes="dialog", id="keep"):
            yield Lines([line((f"Keep {plain(self._allocation.name, 60)} for the next run?", "strong"))])
            yield Input(str(DEFAULT_MINUTES), type="integer", max_length=6, id="minutes")
            yield Lines(id="keep-cost", classes="wraps")
            yield Lines(
                [(), line((" ⏎ ", "key"), (" keep it     ", "plain"), (" esc ", "key"), (" leave it", "plain"))]
            )

    def on_mount(self) -> None:
        """Name the field and say what the default costs."""
        field = self.query_one("#minutes", Input)
        field.border_title = "minutes"
        field.focus()
        self._tell(field.value)

    def on_input_changed(self, message: Input.Changed) -> None:
        """Say what that costs."""
        self._tell(message.value)

    def on_input_submitted(self, message: Input.Submitted) -> None:
        """Close with the minutes, if they are some."""
        minutes = _minutes(message.value)
        if minutes is not None:
            self.dismiss(minutes)

    def action_leave(self) -> None:
        """Close without."""
        self.dismiss(None)

    def _tell(self, typed: str) -> None:
        self.query_one("#keep-cost", Lines).show([cost_line(_minutes(typed), self._allocation.price_per_hour)])


def _minutes(typed: str) -> int | None:
    """A number of minutes that something can be kept for, or None."""
    minutes = int(typed) if typed.isdecimal() else 0
    return minutes if 0 < minutes <= MAX_KEEP_MINUTES else None


def cost_line(minutes: int | None, price_per_hour: float | None) -> Line:
    """What keeping an allocation for so long costs."""
    if minutes is None:
        return line((f"Give minutes from 1 to {MAX_KEEP_MINUTES:,}.", "warn"))
    if price_per_hour is None:
        return line(("Its price is unknown. It ends itself afterwards, unless a run takes it.", "warn"))
    cost = money(price_per_hour * minutes / 60)
    return line(
        (f"At {money(price_per_hour)} an hour that is up to {cost}. ", "plain"),
        ("It is ended afterwards, unless a run takes it.", "muted"),
    )
