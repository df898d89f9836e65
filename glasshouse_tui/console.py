"""What a screen may ask of the console that shows it. Screens know this protocol; the app knows the screens."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from textual.screen import Screen

    from engine.store.views import AllocationView
    from glasshouse_tui.poller import Poller


class Console(Protocol):
    """The console, as its screens see it."""

    home: Path
    read_only: bool
    poller: Poller

    @property
    def front(self) -> Screen[Any] | None:
        """The uppermost screen that is not a dialog."""

    @property
    def acted(self) -> bool:
        """True once somebody pressed a key."""

    def now(self) -> datetime:
        """The time now, aware UTC."""

    def restored(self, name: str) -> dict[str, Any]:
        """What the previous session saved of a list."""

    def open_run(self, run_id: str, *, panel: str = "") -> None:
        """Show one run."""

    def start_demo(self) -> None:
        """Start the demo run; one at a time."""

    def resume(self, run_id: str) -> None:
        """Start a runner for a run that has none."""

    def ask_cancel(self, run_id: str, label: str) -> None:
        """Ask whether to cancel a run, then do it."""

    def ask_keep(self, allocation: AllocationView) -> None:
        """Ask for how long to keep an allocation, then do it."""

    def ask_release(self, allocation: AllocationView) -> None:
        """Ask whether to release an allocation, then do it."""

    def query_providers(self) -> None:
        """Query the providers for what is rented; one query at a time."""

    def copy(self, run_id: str, what: str) -> None:
        """Copy the id or the row of a run to the clipboard."""
