"""Shutdown on a key, a signal or a crash: save the settings, restore the terminal, say which runs continue."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import Any

from textual.worker import WorkerFailed

from glasshouse_tui import backend
from glasshouse_tui.actions import ActionsApp
from glasshouse_tui.format import plain
from glasshouse_tui.messages import Problem


class ShutdownApp(ActionsApp):
    """The part of the app that shuts it down.

    `farewell` is printed once the terminal is restored; `crash` is an unexpected exception, if there was one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crash: BaseException | None = None
        self.farewell: list[str] = []

    def settings(self) -> dict[str, Any] | None:
        """The settings to restore at the next start; None leaves the saved ones unchanged."""
        raise NotImplementedError

    def stop_reading(self) -> None:
        """Stop reading the store."""
        raise NotImplementedError

    def exit_on_signals(self) -> None:
        """Make SIGTERM and SIGHUP quit as the key does, with exit code 128 plus the signal's number."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        self.run_worker(self._save_and_exit(128 + number), group="shutdown", exclusive=True)

    async def action_quit(self) -> None:
        """Quit the console; runs continue."""
        await self._save_and_exit(0)

    async def _save_and_exit(self, code: int) -> None:
        self.stop_reading()
        settings = self.settings()
        if settings is not None:
            saved = await self.in_thread(partial(backend.save_settings, self.home, settings))
            if isinstance(saved, Problem):
                self.farewell.append(f"The console's settings were not saved: {plain(saved.message)}")
        runs = await self.in_thread(partial(backend.unfinished_runs, self.home))
        if isinstance(runs, list) and runs:
            continuing = "1 run continues" if len(runs) == 1 else f"{len(runs)} runs continue"
            self.farewell.append(
                f"{continuing} without the console: `glasshouse` opens it again, "
                f"`glasshouse watch {runs[0][0]}` follows the run in this terminal."
            )
        self.exit(code, return_code=code)

    def _handle_exception(self, error: Exception) -> None:
        """Store an unexpected exception; it is raised once the terminal is restored."""
        if self.crash is None:
            self.crash = error.error if isinstance(error, WorkerFailed) else error
        super()._handle_exception(error)

    def _print_error_renderables(self) -> None:
        """Print nothing: the traceback goes to a log file."""
        self._exit_renderables.clear()
