"""Leaving: on a key, a signal or a crash, with the terminal restored, the screen kept and what goes on said."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import Any

from textual.worker import WorkerFailed

from glasshouse_tui import backend
from glasshouse_tui.actions import RequestingApp
from glasshouse_tui.format import plain
from glasshouse_tui.messages import Problem


class LeavingApp(RequestingApp):
    """An app that leaves cleanly. `farewell` is said once the terminal is restored; `crash` is what nobody foresaw."""

    def __init__(self) -> None:
        super().__init__()
        self.crash: BaseException | None = None
        self.farewell: list[str] = []

    def settings(self) -> dict[str, Any] | None:
        """What comes back at the next start; None keeps what was kept before."""
        raise NotImplementedError

    def stop_reading(self) -> None:
        """Read no more from the store."""
        raise NotImplementedError

    def leave_on_signals(self) -> None:
        """From now on SIGTERM and SIGHUP leave as the key does; the exit code is 128 and the signal's number."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        self.run_worker(self._leave(128 + number), group="leave", exclusive=True)

    async def action_quit(self) -> None:
        """Leave; runs go on."""
        await self._leave(0)

    async def _leave(self, code: int) -> None:
        self.stop_reading()
        settings = self.settings()
        if settings is not None:
            saved = await self.in_thread(partial(backend.save_settings, self.home, settings))
            if isinstance(saved, Problem):
                self.farewell.append(f"The screen was not kept for the next start: {plain(saved.message)}")
        going = await self.in_thread(partial(backend.going_on, self.home))
        if isinstance(going, list) and going:
            runs = "1 run goes" if len(going) == 1 else f"{len(going)} runs go"
            self.farewell.append(
                f"{runs} on without the console: `glasshouse` shows it again, "
                f"`glasshouse watch {going[0][0]}` follows from here."
            )
        self.exit(code, return_code=code)

    def _handle_exception(self, error: Exception) -> None:
        """Keep what nobody foresaw; it is raised once the terminal is restored."""
        if self.crash is None:
            self.crash = error.error if isinstance(error, WorkerFailed) else error
        super()._handle_exception(error)

    def _print_error_renderables(self) -> None:
        """Print nothing: a traceback belongs into a log file."""
        self._exit_renderables.clear()
