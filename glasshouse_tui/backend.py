"""The console's operations: start, resume, cancel, keep, release, query providers, copy, save settings.

They block, so they run in a thread. All raise `GlasshouseError`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from glasshouse_tui.poller import SETTINGS

if TYPE_CHECKING:
    from engine.allocations.overview import Overview

DEMO: Final = "demo"


class Launcher(Protocol):
    """Starts the processes that run and release, and queries providers; the console itself never does that work."""

    def start_demo(self, home: Path) -> str:
        """Start the demo run, detached, and return its id."""

    def resume(self, home: Path, run_id: str) -> None:
        """Start a new runner for an unfinished run."""

    def keep(self, home: Path, allocation_id: str, minutes: int) -> str:
        """Keep an allocation for a later run; returns the time, UTC, until which it is kept."""

    def release(self, home: Path, allocation_id: str) -> None:
        """Start to release an allocation; the ledger shows the outcome."""

    def query_providers(self, home: Path) -> Overview:
        """List the allocations of every provider, over the network."""


class EngineLauncher:
    """The launcher that uses the installed engine."""

    def start_demo(self, home: Path) -> str:
        """Start the preset `demo` on the local allocation and return the run's id."""
        from engine.plan import preset
        from engine.runner.start import start_run

        return start_run(home, preset(DEMO))

    def resume(self, home: Path, run_id: str) -> None:
        """Start a runner for a run that has none."""
        from engine.runner.start import resume_run

        resume_run(home, run_id)

    def keep(self, home: Path, allocation_id: str, minutes: int) -> str:
        """Keep the allocation of an active run, or extend the time of a kept one."""
        from engine.allocations.cleanup import keep

        return keep(home, allocation_id, minutes)

    def release(self, home: Path, allocation_id: str) -> None:
        """Start a process that terminates the allocation and proves that it is gone."""
        from engine.allocations.cleanup import release_in_background

        release_in_background(home, allocation_id)

    def query_providers(self, home: Path) -> Overview:
        """The ledger joined with the current listings of the providers."""
        from engine.allocations.overview import overview

        return overview(home)


def cancel(home: Path, run_id: str) -> None:
    """Request the run's runner to cancel it."""
    from engine.store.writer import Writer

    with Writer(home) as writer:
        writer.request(run_id, "cancel")


def row_json(home: Path, run_id: str) -> str:
    """The run's row as indented JSON; for an unfinished run, the fields known so far."""
    from engine.records.row import live_row
    from engine.store.reader import Reader

    with Reader(home) as reader:
        view = reader.run(run_id)
    return json.dumps(view.row if view.row is not None else live_row(view), indent=2, ensure_ascii=False)


def full_id(home: Path, run_id: str) -> str:
    """The full id of a run named by a unique prefix or `last`."""
    from engine.store.reader import Reader

    with Reader(home) as reader:
        return reader.resolve(run_id)


def unfinished_runs(home: Path) -> list[tuple[str, str]]:
    """(id, label) of every unfinished run that has a live runner."""
    from engine.store.reader import Reader

    with Reader(home) as reader:
        return [(run.id, run.label) for run in reader.unfinished() if not run.orphaned]


def save_settings(home: Path, settings: dict[str, Any]) -> None:
    """Save the console's settings for its next start."""
    from engine.store.writer import Writer

    with Writer(home) as writer:
        writer.set_setting(SETTINGS, json.dumps(settings, sort_keys=True))
