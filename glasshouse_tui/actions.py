"""The operator's actions: each runs in a thread and reports its result by a message."""

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
from glasshouse_tui.messages import ActionDone, ActionFailed, Copied, Problem, ProvidersListed, RunResolved, RunStarted
from glasshouse_tui.poller import problem_of
from glasshouse_tui.screens.dialogs import ConfirmScreen
from glasshouse_tui.screens.keeping import KeepScreen

if TYPE_CHECKING:
    from engine.store.views import AllocationView

FAILURES: Final = (GlasshouseError, OSError, sqlite3.Error)


class ActionsApp(App[int]):
    """The part of the app that performs the operator's actions and reports their results."""

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
        """Start the demo run; ignored while a start is in progress."""
        if self._starting:
            return
        self._starting = True
        self.notify("Starting the demo run…", timeout=3)
        self._in_thread(lambda: RunStarted(self.launcher.start_demo(self.home)))

    def resume(self, run_id: str) -> None:
        """Start a new runner for a run that has none."""

        def perform() -> Message:
            self.launcher.resume(self.home, run_id)
            return ActionDone(f"Resumed run {short_id(run_id)}.")

        self._in_thread(perform)

    def ask_cancel(self, run_id: str, label: str) -> None:
        """Cancel the run after a confirmation."""

        def perform() -> Message:
            backend.cancel(self.home, run_id)
            return ActionDone(f"Run {short_id(run_id)} is being cancelled; it cleans up first.")

        def answered(yes: bool | None) -> None:
            if yes:
                self._in_thread(perform)

        self.push_screen(
            ConfirmScreen(
                f"Cancel the run {label} ({short_id(run_id)})?",
                "Training stops, keys and plaintext are wiped, the allocation is released. The row will not be clean.",
                "cancel the run",
                "go back",
            ),
            answered,
        )

    def ask_keep(self, allocation: AllocationView) -> None:
        """Keep the allocation for the minutes that the operator enters."""

        def answered(minutes: int | None) -> None:
            if minutes is None:
                return

            def perform() -> Message:
                until = self.launcher.keep(self.home, allocation.id, minutes)
                when = f"until {clock(until)}" if parse_time(until) else until
                options = f"--provider {allocation.provider} --allocation {allocation.id}"
                return ActionDone(f"Kept {when}. To run on it: `glasshouse run {options}`.")

            self._in_thread(perform)

        self.push_screen(KeepScreen(allocation), answered)

    def ask_release(self, allocation: AllocationView) -> None:
        """Release the allocation after a confirmation."""

        def perform() -> Message:
            self.launcher.release(self.home, allocation.id)
            return ActionDone("Releasing the allocation. Its state becomes `gone` once that is proven.")

        def answered(yes: bool | None) -> None:
            if yes:
                self._in_thread(perform)

        self.push_screen(
            ConfirmScreen(
                f"Release {plain(allocation.name, 60)}?",
                f"It is billed at {price(allocation.price_per_hour)} and has cost {money(allocation.spent)}. All data "
                "on it is lost. Two listings of the provider then prove that it is gone.",
                "release it",
                "go back",
            ),
            answered,
        )

    def query_providers(self) -> None:
        """List the allocations of all providers; ignored while a query is in progress."""
        if self._querying:
            return
        self._querying = True
        self.notify("Querying the providers…", timeout=3)

        def perform() -> Message:
            try:
                return ProvidersListed(self.launcher.query_providers(self.home))
            finally:
                self._querying = False

        self._in_thread(perform)

    def copy(self, run_id: str, what: str) -> None:
        """Copy the id or the row of a run to the clipboard (by OSC 52)."""
        if what == "id":
            self.post_message(Copied("id", run_id))
        else:
            self._in_thread(lambda: Copied("row", backend.row_json(self.home, run_id)))

    def open_prefix(self, prefix: str) -> None:
        """Show the run whose id has this prefix, or `last`."""
        self._in_thread(lambda: RunResolved(backend.full_id(self.home, prefix)))

    @work(thread=True, group="requests")
    def _in_thread(self, operation: Callable[[], Message]) -> None:
        try:
            message = operation()
        except FAILURES as error:
            message = ActionFailed(problem_of(error))
        self.post_message(message)

    async def in_thread(self, operation: Callable[[], Any]) -> Any | Problem:
        """The result of `operation`, run in a thread, or its error as a `Problem`."""
        try:
            return await asyncio.get_running_loop().run_in_executor(None, partial(operation))
        except FAILURES as error:
            return problem_of(error)

    def notify_problem(self, problem: Problem) -> None:
        """Notify of an error with its sentence, hint and code."""
        text = plain(f"{problem.message} {problem.hint}".strip())
        self.notify(text, title=plain(problem.code), severity="error", timeout=12, markup=False)

    def on_run_started(self, message: RunStarted) -> None:
        """Show the run that was started."""
        self._starting = False
        self.open_run(message.run_id)

    def on_run_resolved(self, message: RunResolved) -> None:
        """Show the requested run."""
        self.open_run(message.run_id)

    def on_action_done(self, message: ActionDone) -> None:
        """Notify of what was done."""
        self.notify(plain(message.sentence), markup=False)

    def on_copied(self, message: Copied) -> None:
        """Send the text to the terminal's clipboard."""
        self.copy_to_clipboard(message.text)
        self.notify(f"Copied the {message.what} to the clipboard.", timeout=3)

    def on_action_failed(self, message: ActionFailed) -> None:
        """Notify of the error."""
        self._starting = False
        self.notify_problem(message.problem)
