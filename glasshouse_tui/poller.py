"""The poller: one thread that reads the store for the screen in front and posts the result to it.

It checks `PRAGMA data_version` several times a second and reads only when the store has changed, when another screen
has come to the front, or when a heartbeat is due (a dead runner commits nothing). Only the latest reading counts.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine.errors import GlasshouseError, UsageError
from glasshouse_tui.messages import (
    FleetData,
    FleetRead,
    Problem,
    RunData,
    RunMissing,
    RunRead,
    SettingsRead,
    StoreAvailable,
    StoreChanged,
    StoreTrouble,
)
from glasshouse_tui.run_metrics import is_final

if TYPE_CHECKING:
    from textual.message import Message

    from engine.store.reader import Reader
    from engine.store.views import LogLine, RunSummary, RunView

PERIOD_SECONDS: Final = 0.2
READ_GAP_SECONDS: Final = 0.5
CURVE_GAP_SECONDS: Final = 0.9
HEARTBEAT_SECONDS: Final = 3.0
RETRY_SECONDS: Final = 1.5
FLEET_RUNS: Final = 60
LOG_LINES: Final = 300
SETTINGS: Final = "console"


class Target(Protocol):
    """A receiver of messages from any thread."""

    def post_message(self, message: Message) -> bool:
        """Queue a message without waiting."""


@dataclass(frozen=True)
class FleetInterest:
    """Allocations and the newest runs."""


@dataclass(frozen=True)
class RunInterest:
    """One run, its curves decimated to `points` points each (0: no curves), and its newest log lines."""

    run_id: str
    points: int = 0


@dataclass(frozen=True)
class ChangeInterest:
    """Only the fact that something changed."""


Interest = FleetInterest | RunInterest | ChangeInterest


def problem_of(error: BaseException) -> Problem:
    """An error of the store, the engine or the disk as a `Problem`."""
    if isinstance(error, GlasshouseError):
        return Problem(error.code, error.message, error.hint)
    if isinstance(error, OSError):
        path = f" {error.filename}" if error.filename is not None else ""
        return Problem(
            "not_permitted" if isinstance(error, PermissionError) else "disk_failed",
            f"Reading or writing{path} failed: {(error.strerror or type(error).__name__).lower()}.",
            "Check the disk and its permissions, or choose another home with --home DIR.",
        )
    return Problem("store_unusable", f"The database cannot be read: {error}.", "Try again, or run `glasshouse doctor`.")


class Poller:
    """Reads for one interest at a time; `run` is the thread's body."""

    def __init__(self, home: Path, app: Target, *, read_only: bool) -> None:
        """`app` receives store errors and settings; `watch` names the receiver of readings."""
        self._home = home
        self._app = app
        self._read_only = read_only
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._requested: tuple[Interest, Target] | None = None
        self._served: tuple[Interest, Target] | None = None
        self._reader: Reader | None = None
        self._available: bool | None = None
        self._settings_posted = False
        self._version = -1
        self._read_at = 0.0
        self._final_views: dict[str, tuple[RunSummary, RunView]] = {}
        self._log: deque[LogLine] = deque(maxlen=LOG_LINES)
        self._log_run = ""
        self._curves: dict[str, tuple[tuple[int, float], ...]] = {}
        self._curves_for: tuple[object, ...] = ()
        self._curves_at = 0.0

    def watch(self, interest: Interest, target: Target) -> None:
        """Read for `interest` and post to `target` from now on; callable from any thread."""
        with self._lock:
            self._requested = (interest, target)
        self._wake.set()

    def wake(self) -> None:
        """Check the store now; callable from any thread."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread soon; callable from any thread."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Poll until stopped."""
        while not self._stopping.is_set():
            pause = PERIOD_SECONDS
            try:
                self._poll()
            except (GlasshouseError, OSError, sqlite3.Error) as error:
                if self._reader is not None:
                    self._reader.close()
                self._reader = self._served = None
                self._available = False
                self._app.post_message(StoreTrouble(problem_of(error)))
                pause = RETRY_SECONDS
            self._wake.wait(pause)
            self._wake.clear()

    def _poll(self) -> None:
        reader = self._open_reader()
        if not self._settings_posted:
            self._settings_posted = True
            self._app.post_message(SettingsRead(_settings(reader)))
        with self._lock:
            requested = self._requested
        if requested is None:
            return
        other_screen = requested != self._served
        version = reader.data_version()
        since = time.monotonic() - self._read_at
        if not other_screen and since < (HEARTBEAT_SECONDS if version == self._version else READ_GAP_SECONDS):
            return
        self._served, self._version, self._read_at = requested, version, time.monotonic()
        interest, target = requested
        if isinstance(interest, FleetInterest):
            target.post_message(FleetRead(self._fleet(reader)))
        elif isinstance(interest, RunInterest):
            self._post_run(reader, interest, target)
        else:
            target.post_message(StoreChanged())
        if not self._available:
            self._available = True
            self._app.post_message(StoreAvailable())

    def _open_reader(self) -> Reader:
        if self._reader is None:
            from engine.store.reader import Reader

            if not self._read_only:
                from engine.store.writer import Writer

                Writer(self._home).close()
            self._reader = Reader(self._home)
        return self._reader

    def _fleet(self, reader: Reader) -> FleetData:
        unfinished = reader.unfinished()
        unfinished_ids = {run.id for run in unfinished}
        runs = (*unfinished, *(run for run in reader.runs(limit=FLEET_RUNS) if run.id not in unfinished_ids))
        views: dict[str, RunView] = {}
        for summary in runs:
            cached = self._final_views.get(summary.id)
            if cached and cached[0] == summary:
                views[summary.id] = cached[1]
                continue
            views[summary.id] = view = reader.run(summary.id)
            if is_final(summary):
                self._final_views[summary.id] = (summary, view)
        self._final_views = {run_id: cached for run_id, cached in self._final_views.items() if run_id in views}
        return FleetData(runs=runs, views=views, allocations=tuple(reader.allocations()))

    def _post_run(self, reader: Reader, interest: RunInterest, target: Target) -> None:
        try:
            view = reader.run(interest.run_id)
        except UsageError as error:
            self._app.post_message(RunMissing(interest.run_id, problem_of(error)))
            return
        if self._log_run != view.summary.id:
            self._log_run = view.summary.id
            self._log.clear()
            self._curves_for = ()
        after = self._log[-1].rowid if self._log else 0
        self._log.extend(reader.log(view.summary.id, after=after, last=LOG_LINES))
        self._read_curves(reader, view, interest.points)
        target.post_message(RunRead(RunData(view, dict(self._curves), tuple(self._log))))

    def _read_curves(self, reader: Reader, view: RunView, points: int) -> None:
        now = time.monotonic()
        steps = tuple((segment.kind, segment.steps) for segment in view.segments)
        wanted = (view.summary.id, points, steps)
        same_plot = self._curves_for[:2] == wanted[:2]
        if wanted == self._curves_for or (same_plot and now - self._curves_at < CURVE_GAP_SECONDS):
            return
        self._curves_for, self._curves_at = wanted, now
        self._curves = {
            kind: tuple(reader.series_points(view.summary.id, kind, points)) if points else ()
            for kind, count in steps
            if count
        }


def _settings(reader: Reader) -> dict[str, Any]:
    text = reader.setting(SETTINGS)
    try:
        settings = json.loads(text) if text else {}
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}
