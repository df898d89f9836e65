"""What the console asks for: starting, resuming, cancelling, keeping and releasing, copying, its settings. Each blocks;
run it in a thread. Every one raises `GlasshouseError`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from glasshouse_tui.poller import SETTINGS

if TYPE_CHECKING:
    from engine.allocations.overview import Overview

DEMO: Final = "demo"


class Launcher(Protocol):
    """Starts processes that run and release, and asks providers; the console never runs anything itself."""

    def start_demo(self, home: Path) -> str:
        """Start the demo run, detached; returns its id."""

    def resume(self, home: Path, run_id: str) -> None:
        """Give an unfinished run a runner again."""

    def keep(self, home: Path, allocation_id: str, minutes: int) -> str:
        """Keep an allocation for the next run; returns until when, UTC."""

    def release(self, home: Path, allocation_id: str) -> None:
        """Start ending an allocation; the ledger shows what becomes of it."""

    def query_providers(self, home: Path) -> Overview:
        """Ask every provider what is there, over the network."""


class EngineLauncher:
    """The launcher of the installed engine."""

    def start_demo(self, home: Path) -> str:
        """Start the preset `demo` on the local allocation; returns the run's id."""
        from engine.plan import preset
        from engine.runner.start import start_run

        return start_run(home, preset(DEMO))

    def resume(self, home: Path, run_id: str) -> None:
        """Start a runner for a run that nobody is running."""
        from engine.runner.start import resume_run

        resume_run(home, run_id)

    def keep(self, home: Path, allocation_id: str, minutes: int) -> str:
        """Keep the allocation of a run that goes on, or prolong a kept one."""
        from engine.allocations.cleanup import keep

        return keep(home, allocation_id, minutes)

    def release(self, home: Path, allocation_id: str) -> None:
        """Start a process that ends the allocation and proves it."""
        from engine.allocations.cleanup import release_in_background

        release_in_background(home, allocation_id)

    def query_providers(self, home: Path) -> Overview:
        """The ledger joined with what the providers list now."""
        from engine.allocations.overview import overview

        return overview(home)


def cancel(home: Path, run_id: str) -> None:
    """Ask the run's runner to cancel it."""
    from engine.store.writer import Writer

    with Writer(home) as writer:
        writer.request(run_id, "cancel")


def row_json(home: Path, run_id: str) -> str:
    """The run's row as indented JSON; as far as it has come where the run goes on."""
    from engine.records import live_row
    from engine.store.reader import Reader

    with Reader(home) as reader:
        view = reader.run(run_id)
    return json.dumps(view.row if view.row is not None else live_row(view), indent=2, ensure_ascii=False)


def full_id(home: Path, run_id: str) -> str:
    """The id that a unique prefix, or `last`, stands for."""
    from engine.store.reader import Reader

    with Reader(home) as reader:
        return reader.resolve(run_id)


def going_on(home: Path) -> list[tuple[str, str]]:
    """(id, label) of every run that has not ended and has a runner."""
    from engine.store.reader import Reader

    with Reader(home) as reader:
        return [(run.id, run.label) for run in reader.unfinished() if not run.orphaned]


def save_settings(home: Path, settings: dict[str, Any]) -> None:
    """Keep the console's settings for its next start."""
    from engine.store.writer import Writer

    with Writer(home) as writer:
        writer.set_setting(SETTINGS, json.dumps(settings, sort_keys=True))
