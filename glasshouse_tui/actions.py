"""What the operator asks for from the console: each in a thread, each answered by a message."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from textual import work
from textual.app import App
from textual.message import Message

from engine.errors import GlasshouseError
from glasshouse_tui import backend
from glasshouse_tui.allocation_status import price
from glasshouse_tui.backend import Launcher
from glasshouse_tui.format import clock, money, parse_time, plain, short_id
from glasshouse_tui.messages import Copied, Done, Looked, Problem, Refused, RunFound, RunStarted
from glasshouse_tui.poller import problem_of
from glasshouse_tui.screens.dialogs import ConfirmScreen
from glasshouse_tui.screens.keeping import KeepScreen

if TYPE_CHECKING:
    from engine.store.views import AllocationView

FAILURES: Final = (GlasshouseError, OSError, sqlite3.Error)


class RequestingApp(App[int]):
    """An app that asks runners and the store for things, and says what came of it."""

    home: Path
    read_only: bool
    launcher: Launcher

    def __init__(self) -> None:
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        self._starting = False
        self._querying = False

    def open_run(self, run_id: str, *, panel: str = "") -> None:
        """Show one run."""
        raise NotImplementedError

    def start_demo(self) -> None:
        """Start the demo run; one at a time."""
        if self._starting:
            return
        self._starting = True
        self.notify("Starting the demo run.", timeout=3)
        self._in_thread(lambda: RunStarted(self.launcher.start_demo(self.home)))

    def resume(self, run_id: str) -> None:
        """Give a run that nobody is running a runner again."""

        def go() -> Message:
            self.launcher.resume(self.home, run_id)
            return Done(f"Run {short_id(run_id)} has a runner again.")

        self._in_thread(go)

    def ask_cancel(self, run_id: str, label: str) -> None:
        """Ask whether to cancel, then do it."""

        def go() -> Message:
            backend.cancel(self.home, run_id)
            return Done(f"Run {short_id(run_id)} was asked to stop; it cleans up first.")

        def answered(yes: bool | None) -> None:
            if yes:
                self._in_thread(go)

        self.push_screen(
            ConfirmScreen(
                f"Cancel the run {label} ({short_id(run_id)})?",
                "Training stops, keys and plaintext are wiped, the allocation is released. Its row will not be clean.",
                "cancel it",
                "let it go on",
            ),
            answered,
        )

    def ask_keep(self, allocation: AllocationView) -> None:
        """Ask for how long, with what that costs, then have it kept."""

        def answered(minutes: int | None) -> None:
            if minutes is None:
                return

            def go() -> Message:
                until = self.launcher.keep(self.home, allocation.id, minutes)
                when = f"until {clock(until)}" if parse_time(until) else until
                taken = f"--provider {allocation.provider} --allocation {allocation.id}"
                return Done(f"It is kept {when}; `glasshouse run {taken}` takes it.")

            self._in_thread(go)

        self.push_screen(KeepScreen(allocation), answered)

    def ask_release(self, allocation: AllocationView) -> None:
        """Ask whether to end it, then do it."""

        def go() -> Message:
            self.launcher.release(self.home, allocation.id)
            return Done("It is being ended; its state turns to gone once that is proven.")

        def answered(yes: bool | None) -> None:
            if yes:
                self._in_thread(go)

        self.push_screen(
            ConfirmScreen(
                f"Release {plain(allocation.name, 60)}?",
                f"It costs {price(allocation.price_per_hour)} and has cost {money(allocation.spent)}. Nothing on it "
                "survives. Absence is then proven in two listings.",
                "release it",
                "leave it",
            ),
            answered,
        )

    def query_providers(self) -> None:
        """Query the providers for what is rented; one query at a time."""
        if self._querying:
            return
        self._querying = True
        self.notify("Asking the providers what is there.", timeout=3)

        def go() -> Message:
            try:
                return Looked(self.launcher.query_providers(self.home))
            finally:
                self._querying = False

        self._in_thread(go)

    def copy(self, run_id: str, what: str) -> None:
        """Copy the id or the row of a run to the clipboard (OSC 52)."""
        if what == "id":
            self.post_message(Copied("id", run_id))
        else:
            self._in_thread(lambda: Copied("row", backend.row_json(self.home, run_id)))

    def open_prefix(self, prefix: str) -> None:
        """Show the run whose id begins so, or `last`."""
        self._in_thread(lambda: RunFound(backend.full_id(self.home, prefix)))

    @work(thread=True, group="requests")
    def _in_thread(self, ask: Callable[[], Message]) -> None:
        try:
            answer = ask()
        except FAILURES as error:
            answer = Refused(problem_of(error))
        self.post_message(answer)

    async def in_thread(self, ask: Callable[[], Any]) -> Any | Problem:
        """The result of `ask`, run in a thread, or the problem it met."""
        try:
            return await asyncio.get_running_loop().run_in_executor(None, partial(ask))
        except FAILURES as error:
            return problem_of(error)

    def say_problem(self, problem: Problem) -> None:
        """A notification with the sentence, what to do, and the code."""
        self.notify(
            plain(f"{problem.message} {problem.hint}".strip()), title=plain(problem.code), severity="error", timeout=12,
            markup=False,
        )  # fmt: skip

    def on_run_started(self, message: RunStarted) -> None:
        """Show the run that was started."""
        self._starting = False
        self.open_run(message.run_id)

    def on_run_found(self, message: RunFound) -> None:
        """Show the run that was asked for."""
        self.open_run(message.run_id)

    def on_done(self, message: Done) -> None:
        """Say that it is done."""
        self.notify(plain(message.sentence), markup=False)

    def on_copied(self, message: Copied) -> None:
        """Hand the text to the terminal."""
        self.copy_to_clipboard(message.text)
        self.notify(f"The {message.what} is on the clipboard.", timeout=3)

    def on_refused(self, message: Refused) -> None:
        """Say why not."""
        self._starting = False
        self.say_problem(message.problem)
