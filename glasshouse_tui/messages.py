"""Every message between the threads that read or write and the screens that show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.message import Message

from engine.store.views import AllocationView, LogLine, RunSummary, RunView
from glasshouse_tui.paging import Answer

if TYPE_CHECKING:
    from engine.allocations.overview import Overview


@dataclass(frozen=True)
class Problem:
    """What went wrong, in the words of the error: a stable code, a sentence, what to do."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True)
class FleetData:
    """What Fleet shows. `views` has the whole view of each run in `runs` by id."""

    runs: tuple[RunSummary, ...]
    views: dict[str, RunView]
    allocations: tuple[AllocationView, ...]


@dataclass(frozen=True)
class RunData:
    """What the Run screen shows. `curves` has decimated (step, loss) points of each segment; `log` the newest lines."""

    view: RunView
    curves: dict[str, tuple[tuple[int, float], ...]]
    log: tuple[LogLine, ...]


@dataclass(frozen=True)
class Picture:
    """What a loss plot is drawn from: its size in columns and lines, the theme, the steps planned, the curves."""

    size: tuple[int, int]
    theme: str
    limit: int | None
    curves: dict[str, tuple[tuple[int, float], ...]]


class _LatestWins(Message, bubble=False):
    """A reading that a newer one of its kind in the queue replaces."""

    def can_replace(self, message: Message) -> bool:
        """True for a message of the same kind."""
        return type(message) is type(self)


class FleetRead(_LatestWins):
    """The store was read for Fleet."""

    def __init__(self, data: FleetData) -> None:
        super().__init__()
        self.data = data


class RunRead(_LatestWins):
    """The store was read for one run."""

    def __init__(self, data: RunData) -> None:
        super().__init__()
        self.data = data


class StoreChanged(_LatestWins):
    """Somebody committed to the store; History asks again for what it shows."""


class StoreTrouble(Message):
    """The home or its database cannot be used now; the reader goes on trying."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem


class StoreWell(Message):
    """The store is read again after trouble, or for the first time."""


class SettingsRead(Message):
    """The console's own settings of the last session were read."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings


class RunMissing(Message):
    """The run that a screen wants is not in the store."""

    def __init__(self, run_id: str, problem: Problem) -> None:
        super().__init__()
        self.run_id = run_id
        self.problem = problem


class WindowRead(Message, bubble=False):
    """A stretch of History was read for the request numbered `ticket`; an older ticket is stale."""

    def __init__(self, ticket: int, answer: Answer) -> None:
        super().__init__()
        self.ticket = ticket
        self.answer = answer


class PlotDrawn(Message, bubble=False):
    """A picture of the losses was drawn as ANSI text."""

    def __init__(self, ansi: str, picture: Picture) -> None:
        super().__init__()
        self.ansi = ansi
        self.picture = picture


class RunStarted(Message):
    """A run was started from here."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id


class Looked(Message):
    """The providers were asked what is there."""

    def __init__(self, overview: Overview) -> None:
        super().__init__()
        self.overview = overview


class RunFound(Message):
    """The run that somebody asked for by a prefix of its id, or as the last one."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id


class Done(Message):
    """Something asked for from here is done; `sentence` says what."""

    def __init__(self, sentence: str) -> None:
        super().__init__()
        self.sentence = sentence


class Copied(Message):
    """A text was read for the clipboard; `what` names it."""

    def __init__(self, what: str, text: str) -> None:
        super().__init__()
        self.what = what
        self.text = text


class Refused(Message):
    """Something asked for from here could not be done."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
