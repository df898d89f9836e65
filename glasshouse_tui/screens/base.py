"""What all screens share: the two bars, the registration with the poller, the refusals of a read-only console."""

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
    """A screen with the top bar and the key bar. The poller reads for it while it is in front."""

    BINDINGS: ClassVar[list[BindingType]] = []
    TAB: ClassVar[str] = "fleet"

    def __init__(self) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (70, "-narrow"), (110, "-wide")]
        self.VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]
        self._applicable: tuple[bool, ...] = ()

    @property
    def console(self) -> Console:
        """The app, as its screens see it."""
        return cast("Console", self.app)

    @property
    def roomy(self) -> bool:
        """True if there is room for all panels at once."""
        return self.has_class("-wide") and self.has_class("-tall")

    @property
    def in_front(self) -> bool:
        """True if only dialogs are above this screen; otherwise it need not be drawn."""
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
        """What the poller reads while this screen is in front."""
        raise NotImplementedError

    def subject(self) -> tuple[str, str] | None:
        """The id and label of the run that actions apply to."""
        return None

    def can_cancel(self) -> bool:
        """True if the run that actions apply to can be cancelled."""
        return False

    def can_resume(self) -> bool:
        """True if the run that actions apply to has no runner."""
        return False

    def on_screen_resume(self) -> None:
        """Register with the poller, unless another screen has come to the front meanwhile."""
        if not self.in_front:
            return
        for bar in self.query(TopBar):
            bar.tick()
        self.console.poller.watch(self.interest(), self)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hide actions that do not apply; disable those that read-only forbids."""
        if action in ("open", "copy") and self.subject() is None:
            return False
        if action == "cancel" and not self.can_cancel():
            return False
        if action == "resume" and not self.can_resume():
            return False
        if action in _WRITING and self.console.read_only:
            return None
        return super().check_action(action, parameters)

    def applicable(self) -> tuple[bool, ...]:
        """Which of the conditional actions apply now."""
        return (self.subject() is not None, self.can_cancel(), self.can_resume())

    def refresh_keys(self) -> None:
        """Redraw the key bar if the applicable actions have changed; called after the content changes."""
        applicable = self.applicable()
        if applicable != self._applicable:
            self._applicable = applicable
            self.refresh_bindings()

    def on_descendant_focus(self, _event: events.DescendantFocus) -> None:
        """Another table may have the focus now, and so another run may be the subject."""
        self.refresh_keys()

    def action_cancel(self) -> None:
        """Cancel the run after a confirmation."""
        if subject := self.subject():
            self.console.ask_cancel(*subject)

    def action_resume(self) -> None:
        """Start a new runner for the run."""
        if subject := self.subject():
            self.console.resume(subject[0])

    def action_copy(self, what: str) -> None:
        """Copy the run's id or row to the clipboard."""
        if subject := self.subject():
            self.console.copy(subject[0], what)

    def state(self) -> dict[str, Any]:
        """The state of this screen to restore at the next start."""
        return {}

    def restore(self, _state: dict[str, Any]) -> None:
        """Restore the state that an earlier session saved."""
