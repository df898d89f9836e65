"""The messages between the threads that read or write and the screens that display."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.message import Message

from engine.store.views import AllocationView, LogLine, RunSummary, RunView
from glasshouse_tui.paging import QueryResult

if TYPE_CHECKING:
    from engine.allocations.overview import Overview


@dataclass(frozen=True)
class Problem:
    """An error to display: a stable code, a sentence, and a hint."""

    code: str
    message: str
    hint: str


@dataclass(frozen=True)
class FleetData:
    """What Fleet shows. `views` holds the full view of each run in `runs`, by id."""

    runs: tuple[RunSummary, ...]
    views: dict[str, RunView]
    allocations: tuple[AllocationView, ...]


@dataclass(frozen=True)
class RunData:
    """What the Run screen shows. `curves` holds decimated (step, loss) points per segment, `log` the newest lines."""

    view: RunView
    curves: dict[str, tuple[tuple[int, float], ...]]
    log: tuple[LogLine, ...]


@dataclass(frozen=True)
class PlotSpec:
    """The input of a loss plot: its size in columns and lines, the theme, the number of planned steps, the curves."""

    size: tuple[int, int]
    theme: str
    limit: int | None
    curves: dict[str, tuple[tuple[int, float], ...]]


class _LatestWins(Message, bubble=False):
    """A reading that is replaced by a newer one of the same class in the queue."""

    def can_replace(self, message: Message) -> bool:
        """True for a message of the same class."""
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
    """The store changed; History rereads the rows it shows."""


class StoreTrouble(Message):
    """The home or its database cannot be used at the moment; the poller keeps retrying."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem


class StoreAvailable(Message):
    """The store was read for the first time, or again after a failure."""


class SettingsRead(Message):
    """The settings that the console saved in its last session were read."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings


class RunMissing(Message):
    """The requested run is not in the store."""

    def __init__(self, run_id: str, problem: Problem) -> None:
        super().__init__()
        self.run_id = run_id
        self.problem = problem


class WindowRead(Message, bubble=False):
    """Rows of History were read for the request numbered `ticket`; a result with an older number is stale."""

    def __init__(self, ticket: int, result: QueryResult) -> None:
        super().__init__()
        self.ticket = ticket
        self.result = result


class PlotDrawn(Message, bubble=False):
    """A loss plot was drawn as ANSI text."""

    def __init__(self, ansi: str, spec: PlotSpec) -> None:
        super().__init__()
        self.ansi = ansi
        self.spec = spec


class RunStarted(Message):
    """A run was started from the console."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id


class ProvidersListed(Message):
    """The providers listed their allocations."""

    def __init__(self, overview: Overview) -> None:
        super().__init__()
        self.overview = overview


class RunResolved(Message):
    """A prefix of a run's id, or `last`, was resolved to the full id."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id


class ActionDone(Message):
    """An action of the operator is done; `sentence` says what was done."""

    def __init__(self, sentence: str) -> None:
        super().__init__()
        self.sentence = sentence


class Copied(Message):
    """A text for the clipboard was read; `what` names it."""

    def __init__(self, what: str, text: str) -> None:
        super().__init__()
        self.what = what
        self.text = text


class ActionFailed(Message):
    """An action of the operator, or a read for History, failed."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
