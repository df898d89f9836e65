"""The help screen, the confirmation dialog, and the screen for a home that cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen

from glasshouse_tui.bindings import KEYS, SECTIONS
from glasshouse_tui.format import DASH, plain
from glasshouse_tui.messages import Problem
from glasshouse_tui.widgets.paint import Line, Lines, fit, line
from glasshouse_tui.widgets.scroll import ScrollPanel

if TYPE_CHECKING:
    from pathlib import Path


_KEY_CELLS: Final = 11
_SHAPES: Final = (
    ("✓", "good", "passed, done, proven"),
    ("✗", "bad", "failed, rejected, leaked"),
    ("▸", "busy", "in progress"),
    ("…", "busy", "pending"),
    ("!", "warn", "needs your attention"),
    (DASH, "muted", "not applicable, or no value"),
)


class HelpScreen(ModalScreen[None]):
    """All keys, grouped by where they work."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,f1,q,enter", "dismiss", "Close")]

    def __init__(self) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]

    def compose(self) -> ComposeResult:
        """Two columns of sections, and how to close the screen."""
        half = (len(SECTIONS) + 1) // 2
        with Vertical(id="help", classes="dialog"):
            with ScrollPanel(), Horizontal():
                yield Lines(_sections(SECTIONS[:half]))
                yield Lines([*_sections(SECTIONS[half:]), *_shapes()])
            yield Lines(
                [line(("esc", "accent"), (" close     ", "muted"), ("↓ ↑", "accent"), (" scroll", "muted"))],
                classes="foot",
            )

    def on_mount(self) -> None:
        """Set the dialog's title."""
        self.query_one("#help").border_title = "Keys"


def _sections(names: tuple[str, ...]) -> list[Line]:
    lines: list[Line] = []
    for section in names:
        lines.append(line((section, "strong")))
        keys = (key for key in KEYS if key.section == section)
        lines.extend(line((f"{key.shown:<{_KEY_CELLS}}", "accent"), (key.help, "plain")) for key in keys)
        lines.append(())
    return lines


def _shapes() -> list[Line]:
    return [
        line(("Shapes", "strong")),
        *(fit(line((f"{s}  ", tone), (words, "plain")), 40) for s, tone, words in _SHAPES),
    ]


class ConfirmScreen(ModalScreen[bool]):
    """A yes/no question; any key but y means no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,enter,q", "answer(False)", "No"),
    ]

    def __init__(self, question: str, consequence: str, yes: str, no: str) -> None:
        super().__init__()
        self._question = question
        self._consequence = consequence
        self._answers = (yes, no)

    def compose(self) -> ComposeResult:
        """The question, the consequence of yes, the two keys."""
        yes, no = self._answers
        with Vertical(classes="dialog", id="confirm"):
            yield Lines([line((plain(self._question), "strong"))])
            yield Lines([(), line((self._consequence, "plain"))], classes="wraps")
            yield Lines([(), line((" y ", "key"), (f" {yes}     ", "plain"), (" n ", "key"), (f" {no}", "plain"))])

    def action_answer(self, answer: bool) -> None:
        """Close with the answer."""
        self.dismiss(answer)


class TroubleScreen(ModalScreen[None]):
    """The home or its database cannot be used: the error and its hint. Closed once the store can be read."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "app.quit", "Quit"),
        Binding("r", "app.retry", "Try again"),
    ]

    def __init__(self, problem: Problem, home: Path) -> None:
        super().__init__()
        self._problem = problem
        self._home = home

    def compose(self) -> ComposeResult:
        """The error's code, sentence and hint, the home, the keys."""
        with Vertical(classes="dialog", id="trouble"):
            yield Lines(id="code")
            yield Lines(id="sentence", classes="wraps")
            yield Lines(id="hint", classes="wraps")
            yield Lines(id="trouble-home", classes="wraps")
            yield Lines([(), line((" r ", "key"), (" try again     ", "plain"), (" q ", "key"), (" quit", "plain"))])

    def on_mount(self) -> None:
        """Show the first error."""
        self.query_one("#trouble").border_title = "The store cannot be used"
        self.show(self._problem)

    def show(self, problem: Problem) -> None:
        """Show the current error."""
        self._problem = problem
        if not self.query("#code"):  # not composed yet; on_mount shows it
            return
        self.query_one("#code", Lines).show([line(("✗ ", "bad"), (plain(problem.code), "bad"))])
        self.query_one("#sentence", Lines).show([(), line((plain(problem.message), "strong"))])
        self.query_one("#hint", Lines).show([(), line((plain(problem.hint), "plain"))])
        self.query_one("#trouble-home", Lines).show([(), line((f"home  {self._home}", "muted"))])
