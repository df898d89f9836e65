"""The interface that the app offers its screens. Screens import this protocol; only the app imports the screens."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from textual.screen import Screen

    from engine.store.views import AllocationView
    from glasshouse_tui.poller import Poller


class Console(Protocol):
    """The app, as its screens see it."""

    home: Path
    read_only: bool
    poller: Poller

    @property
    def front(self) -> Screen[Any] | None:
        """The topmost screen that is not a dialog."""

    @property
    def has_key_input(self) -> bool:
        """True once a key has been pressed."""

    def now(self) -> datetime:
        """The current time, aware UTC."""

    def restored(self, name: str) -> dict[str, Any]:
        """The state of a list that the previous session saved."""

    def open_run(self, run_id: str, *, panel: str = "") -> None:
        """Show one run."""

    def start_demo(self) -> None:
        """Start the demo run; ignored while a start is in progress."""

    def resume(self, run_id: str) -> None:
        """Start a runner for a run that has none."""

    def ask_cancel(self, run_id: str, label: str) -> None:
        """Cancel a run after a confirmation."""

    def ask_keep(self, allocation: AllocationView) -> None:
        """Keep an allocation for the minutes that the operator enters."""

    def ask_release(self, allocation: AllocationView) -> None:
        """Release an allocation after a confirmation."""

    def query_providers(self) -> None:
        """List the allocations of all providers; ignored while a query is in progress."""

    def copy(self, run_id: str, what: str) -> None:
        """Copy the id or the row of a run to the clipboard."""
