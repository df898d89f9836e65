"""What every screen shares: the bars, its place in the feed, what read-only refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import events
from textual.binding import BindingType
from textual.screen import Screen

from glasshouse_tui.bindings import writing_actions
from glasshouse_tui.widgets.bars import KeyBar, TopBar

if TYPE_CHECKING:
    from glasshouse_tui.console import Console
    from glasshouse_tui.poller import Interest

_WRITING = writing_actions()


class ConsoleScreen(Screen[None]):
    """A screen with the top bar and the key bar. It is read for while it is in front."""

    BINDINGS: ClassVar[list[BindingType]] = []
    TAB: ClassVar[str] = "fleet"

    def __init__(self) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (70, "-narrow"), (110, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]
        self._applies: tuple[bool, ...] = ()

    @property
    def console(self) -> Console:
        """The app, as far as screens know it."""
        return cast("Console", self.app)

    @property
    def roomy(self) -> bool:
        """True where all panels fit at once."""
        return self.has_class("-wide") and self.has_class("-tall")

    @property
    def in_front(self) -> bool:
        """True when nothing but dialogs lies over this screen; others need not be drawn."""
        return self.console.front is self

    def top_bar(self) -> TopBar:
        """This screen's top bar."""
        return self._bar(self.TAB)

    def _bar(self, tab: str) -> TopBar:
        return TopBar(tab, read_only=self.console.read_only, now=self.console.now, shown=lambda: self.in_front)

    def key_bar(self) -> KeyBar:
        """This screen's key bar."""
        return KeyBar()

    def interest(self) -> Interest:
        """What is read while this screen is in front."""
        raise NotImplementedError

    def subject(self) -> tuple[str, str] | None:
        """The id and label of the run that actions are about."""
        return None

    def can_cancel(self) -> bool:
        """True when the run that actions are about can be cancelled."""
        return False

    def can_resume(self) -> bool:
        """True when nobody runs the run that actions are about."""
        return False

    def on_screen_resume(self) -> None:
        """Have the store read for this screen, unless another one came to the front meanwhile."""
        if not self.in_front:
            return
        for bar in self.query(TopBar):
            bar.tick()
        self.console.poller.watch(self.interest(), self)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hide what does not apply; show but refuse what read-only forbids."""
        if action in ("open", "copy") and self.subject() is None:
            return False
        if action == "cancel" and not self.can_cancel():
            return False
        if action == "resume" and not self.can_resume():
            return False
        if action in _WRITING and self.console.read_only:
            return None
        return super().check_action(action, parameters)

    def applies(self) -> tuple[bool, ...]:
        """Which of the actions that come and go apply now."""
        return (self.subject() is not None, self.can_cancel(), self.can_resume())

    def refresh_keys(self) -> None:
        """Have the key bar drawn again when other actions apply than before; called when what is shown changed."""
        applies = self.applies()
        if applies != self._applies:
            self._applies = applies
            self.refresh_bindings()

    def on_descendant_focus(self, _event: events.DescendantFocus) -> None:
        """The focus may have gone to another table, and so to another run."""
        self.refresh_keys()

    def action_cancel(self) -> None:
        """Ask, then cancel the run."""
        if subject := self.subject():
            self.console.ask_cancel(*subject)

    def action_resume(self) -> None:
        """Give the run a runner again."""
        if subject := self.subject():
            self.console.resume(subject[0])

    def action_copy(self, what: str) -> None:
        """Copy the run's id or row to the clipboard."""
        if subject := self.subject():
            self.console.copy(subject[0], what)

    def state(self) -> dict[str, Any]:
        """What of this screen comes back at the next start."""
        return {}

    def restore(self, _state: dict[str, Any]) -> None:
        """Bring back what an earlier session left."""
