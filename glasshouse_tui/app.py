"""The console: screens over the store. It reads and requests, and never owns a run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from textual import events
from textual.app import SystemCommand
from textual.binding import BindingType
from textual.screen import Screen

from engine.system.clock import utc
from engine.system.text import visible
from glasshouse_tui import backend
from glasshouse_tui.bindings import ANYWHERE, KEYS, Key, bindings_for
from glasshouse_tui.messages import ProvidersListed, RunMissing, SettingsRead, StoreAvailable, StoreTrouble
from glasshouse_tui.poller import Poller
from glasshouse_tui.screens.base import ConsoleScreen
from glasshouse_tui.screens.dialogs import HelpScreen, TroubleScreen
from glasshouse_tui.screens.fleet import FleetScreen
from glasshouse_tui.screens.history import HistoryScreen
from glasshouse_tui.screens.run import RunScreen
from glasshouse_tui.shutdown import ShutdownApp
from glasshouse_tui.theme import DARK, MONO, THEME_ORDER, THEMES, next_theme

_STYLES: Final = Path(__file__).parent / "styles"
_LISTS: Final = ("fleet", "history")


class GlasshouseApp(ShutdownApp):
    """The app: the screen in front, what the poller reads for it, the settings restored at the next start."""

    TITLE = "glasshouse"
    CSS_PATH: ClassVar[Any] = [_STYLES / f"{name}.tcss" for name in ("base", "lists", "run", "dialogs")]
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(ANYWHERE)]

    def __init__(
        self,
        home: Path,
        *,
        open_run: str | None = None,
        read_only: bool = False,
        launcher: backend.Launcher | None = None,
        now: Callable[[], datetime] = utc,
    ) -> None:
        """`open_run`: the run to show first, by id, unique prefix or `last`. `now` is the clock, aware UTC."""
        super().__init__()
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = MONO if self.no_color else DARK
        self.home = home
        self.read_only = read_only
        self.now = now
        self.launcher = launcher or backend.EngineLauncher()
        self.poller = Poller(home, self, read_only=read_only)
        self._open_first = open_run
        self._restored: dict[str, dict[str, Any]] = {}
        self._has_key_input = False

    async def on_mount(self) -> None:
        """Show Fleet; reading starts after the first frame is drawn."""
        self.exit_on_signals()
        self.install_screen(FleetScreen(), "fleet")
        self.install_screen(HistoryScreen(), "history")
        await self.push_screen("fleet")
        self.screen.call_after_refresh(self._start_reading)

    async def on_event(self, event: events.Event) -> None:
        """Remember the first key press: after it, restored settings no longer move what the operator sees."""
        if isinstance(event, events.Key):
            self._has_key_input = True
        await super().on_event(event)

    def on_unmount(self) -> None:
        """Stop the poller's thread, however the app ends."""
        self.poller.stop()

    def _start_reading(self) -> None:
        self.run_worker(self.poller.run, thread=True, group="poller")
        if self._open_first is not None:
            self.open_prefix(self._open_first)

    def stop_reading(self) -> None:
        """Stop reading the store."""
        self.poller.stop()

    def settings(self) -> dict[str, Any] | None:
        """The settings to restore at the next start: both lists, the open run, the theme."""
        if self.read_only or isinstance(self.screen, TroubleScreen):
            return None
        run = next((screen for screen in self.screen_stack if isinstance(screen, RunScreen)), None)
        tab = "history" if self.get_screen("history") in self.screen_stack else "fleet"
        return {
            **{name: self._list_state(name) for name in _LISTS},
            "screen": tab,
            "run": run.run_id if run else None,
            "panel": run.state()["panel"] if run else None,
            "theme": self.theme,
        }

    def _list_state(self, name: str) -> dict[str, Any]:
        screen = self.get_screen(name)
        if isinstance(screen, ConsoleScreen) and screen.is_mounted:
            return screen.state()
        return self._restored.get(name, {})

    # Screens

    @property
    def front(self) -> ConsoleScreen | None:
        """The topmost screen that is not a dialog."""
        return next((s for s in reversed(self.screen_stack) if isinstance(s, ConsoleScreen)), None)

    def action_go(self, name: str) -> None:
        """Open Fleet or History, closing an open run."""
        if not isinstance(self.screen, ConsoleScreen):
            return
        while isinstance(self.screen, RunScreen):
            self.pop_screen()
        if self.screen is not self.get_screen(name):
            self.switch_screen(name)

    async def action_back(self) -> None:
        """Close the open run."""
        if isinstance(self.screen, RunScreen):
            self.pop_screen()

    def action_help(self) -> None:
        """Show the help screen."""
        if isinstance(self.screen, ConsoleScreen):
            self.push_screen(HelpScreen())

    def action_retry(self) -> None:
        """Read the store again now."""
        self.poller.wake()

    def action_next_theme(self) -> None:
        """Switch to the next theme."""
        self.theme = next_theme(self.theme)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hide the key of the list that is already open."""
        if action == "go" and isinstance(self.screen, ConsoleScreen) and not isinstance(self.screen, RunScreen):
            return self.screen.TAB not in parameters
        return super().check_action(action, parameters)

    def open_run(self, run_id: str, *, panel: str = "proof") -> None:
        """Show one run on top of the current list."""
        if isinstance(self.screen, RunScreen):
            self.pop_screen()
        self.push_screen(RunScreen(run_id, panel=panel))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette's commands: the keys that work on this screen, without Textual's own commands."""
        enabled = {active.binding.id for active in screen.active_bindings.values() if active.enabled}
        for key in KEYS:
            if key.palette and key.id in enabled:
                yield SystemCommand(key.label, f"{key.help}  ({key.shown})", partial(self._perform, key, screen))

    def _perform(self, key: Key, screen: Screen[Any]) -> None:
        self.run_worker(self.run_action(key.action, self if key.section == ANYWHERE else screen))

    # Messages from the poller and other threads

    @property
    def has_key_input(self) -> bool:
        """True once a key has been pressed."""
        return self._has_key_input

    def restored(self, name: str) -> dict[str, Any]:
        """The state of a list that the previous session saved."""
        return self._restored.get(name, {})

    def on_settings_read(self, message: SettingsRead) -> None:
        """Restore the state of the previous session."""
        settings = message.settings
        theme = settings.get("theme")
        if theme in THEME_ORDER and not self.no_color:
            self.theme = theme
        for name in _LISTS:
            self._restored[name] = state if isinstance(state := settings.get(name), dict) else {}
            screen = self.get_screen(name)
            if isinstance(screen, ConsoleScreen) and screen.is_mounted and not self._has_key_input:
                screen.restore(self._restored[name])
        if self._has_key_input or self._open_first is not None:
            return
        if settings.get("screen") == "history":
            self.action_go("history")
        if isinstance(run_id := settings.get("run"), str):
            self.open_run(run_id, panel=str(settings.get("panel")))

    def on_store_trouble(self, message: StoreTrouble) -> None:
        """Show the error on top of the current screen."""
        if isinstance(self.screen, TroubleScreen):
            self.screen.show(message.problem)
        else:
            self.push_screen(TroubleScreen(message.problem, self.home))

    def on_store_available(self, _message: StoreAvailable) -> None:
        """Close the error screen."""
        if isinstance(self.screen, TroubleScreen):
            self.pop_screen()

    def on_providers_listed(self, message: ProvidersListed) -> None:
        """Show the providers' listings in Fleet."""
        fleet = self.get_screen("fleet")
        if isinstance(fleet, FleetScreen):
            fleet.show_providers(message.overview)

    def on_run_missing(self, message: RunMissing) -> None:
        """Close the screen of a run that does not exist."""
        if isinstance(self.screen, RunScreen) and self.screen.run_id == message.run_id:
            self.pop_screen()
        self.notify_problem(message.problem)


def run_console(home: Path, *, open_run: str | None = None, read_only: bool = False) -> int:
    """Open the console on this terminal and return its exit code: 0, or 128 + the signal that ended it.

    The caller has checked that there is a terminal. An unexpected exception is raised once the terminal is restored.
    """
    app = GlasshouseApp(home, open_run=open_run, read_only=read_only)
    app.run()
    if app.crash is not None:
        raise app.crash
    code = app.return_code or 0
    if code == 128 + signal.SIGHUP:  # the terminal is gone, so writing would fail
        devnull = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(devnull, stream.fileno())
    for sentence in app.farewell:
        print(visible(sentence), file=sys.stderr)
    return code
