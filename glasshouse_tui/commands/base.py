"""What commands share: the session, `--json` and `--home`, lazy loading, the notes about runs without a runner."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from engine.errors import GlasshouseError
from engine.plan import RENTED
from engine.store.home import prepare_home, unwritable
from glasshouse_tui.allocation_status import is_unused, totals
from glasshouse_tui.commands.output import note, plain
from glasshouse_tui.format import money

if TYPE_CHECKING:
    from engine.store.reader import Reader
    from engine.store.views import AllocationView
    from engine.store.writer import Writer

HOME_VARIABLE: Final = "GLASSHOUSE_HOME"


@dataclass
class Session:
    """One invocation: where the home is, and whether stdout is JSON. Filled in while options are parsed."""

    chosen_home: str | None = None
    json: bool = False

    @property
    def home(self) -> Path:
        """The home folder, absolute; it may not exist."""
        if self.chosen_home:
            return Path(self.chosen_home).expanduser().absolute()
        from platformdirs import user_data_dir

        return Path(user_data_dir("glasshouse", appauthor=False))

    def reader(self) -> Reader:
        """The store for reading; raises `StoreError` if its database cannot be used."""
        from engine.store.reader import Reader

        return Reader(self.home)

    def writer(self) -> Writer:
        """The store for writing requests; creates the home and the database. Raises `StoreError`."""
        from engine.store.writer import Writer

        return Writer(self.home)


def session_of(context: click.Context) -> Session:
    """The session of this invocation."""
    session: Session = context.ensure_object(Session)
    return session


def _set_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        session_of(context).json = True


def _set_home(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value:
        session_of(context).chosen_home = value


def json_option() -> click.Option:
    """`--json`."""
    return click.Option(
        ["--json"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_json,
        help="Print one JSON document on stdout and nothing else.",
    )


def home_option() -> click.Option:
    """`--home DIR`."""
    return click.Option(
        ["--home"],
        metavar="DIR",
        type=click.Path(file_okay=True),
        expose_value=False,
        callback=_set_home,
        help=f"Folder of database, keys and runs (or {HOME_VARIABLE}; default: the user data folder).",
    )


def runs_without_runner(session: Session) -> list[tuple[str, str]]:
    """(id, label) of every unfinished run that has no live runner; raises `StoreError`."""
    with session.reader() as reader:
        runs = reader.unfinished() if reader.exists() else []
        return [(run.id, run.label) for run in runs if run.orphaned]


def note_runs_without_runner(session: Session) -> None:
    """Note on stderr which unfinished runs have no live runner."""
    try:
        runs = runs_without_runner(session)
    except (GlasshouseError, OSError):
        return  # a command that needs the store reports the error itself
    if len(runs) == 1:
        run_id, label = runs[0]
        note(f"run {run_id} ({label}) is unfinished and has no runner; `glasshouse resume {run_id}` continues it.")
    elif runs:
        ids = ", ".join(run_id for run_id, _ in runs)
        note(f"{len(runs)} runs are unfinished and have no runner ({ids}); `glasshouse resume` continues them.")


def unused_allocations(session: Session) -> list[AllocationView]:
    """Allocations that are rented or leaked, and neither kept nor in use; raises `StoreError`."""
    with session.reader() as reader:
        entries = reader.allocations(open_only=True) if reader.exists() else []
        if not entries:
            return []
        active_runs = {run.id for run in reader.unfinished() if not run.orphaned}
        return [
            entry
            for entry in entries
            if (entry.provider in RENTED or entry.state == "leaked")
            and is_unused(entry, active_runs)
            and not (entry.run_id is None and reader.is_claimed(entry.id))
        ]


def _awaits_the_sentinel(session: Session) -> bool:
    """Whether an allocation that is gone is looked for again, since its provider may list it later."""
    with session.reader() as reader:
        return reader.exists() and any(one.provider in RENTED for one in reader.looked_for())


def note_unused_allocations(session: Session) -> None:
    """Note on stderr which allocations are open without an active run; make sure that the sentinel runs."""
    try:
        unused = unused_allocations(session)
        watched = bool(unused) or _awaits_the_sentinel(session)
    except (GlasshouseError, OSError):
        return  # a command that needs the store reports the error itself
    if watched:
        from engine.runner.spawn import ensure_sentinel

        with contextlib.suppress(OSError):
            ensure_sentinel(session.home)  # it may have died, or this machine may have been rebooted
    if unused:
        which = "1 allocation is" if len(unused) == 1 else f"{len(unused)} allocations are"
        cost = totals(unused)
        least = "" if cost.complete else "at least "
        note(
            f"{which} open without an active run, at {least}{money(cost.price_per_hour, '/h')}; "
            "`glasshouse allocations` lists, `glasshouse cleanup` terminates."
        )


class Subcommand(click.Command):
    """A command with `--json` and `--home`. It first notes runs without a runner and unused allocations."""

    notes_runs: bool = True
    notes_allocations: bool = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend([home_option(), json_option()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; its return value is the exit code (None means 0)."""
        if self.notes_runs:
            note_runs_without_runner(session_of(ctx))
        if self.notes_allocations:
            note_unused_allocations(session_of(ctx))
        return super().invoke(ctx)


class QuietSubcommand(Subcommand):
    """A command without these notes: it handles such runs itself, or does not concern a home."""

    notes_runs = False
    notes_allocations = False


class AllocationSubcommand(Subcommand):
    """A command without the note about allocations, because it reports them itself."""

    notes_allocations = False


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is looked up."""

    def __init__(self, *args: Any, lazy: Mapping[str, str], **kwargs: Any) -> None:
        """`lazy` maps a command's name to `module:attribute`."""
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of `lazy`."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now, or None."""
        target = self._lazy.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


class RunId(click.ParamType[str]):
    """A run's id, any unique prefix of it, or `last`. Completes from the store."""

    name = "id"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The newest ids that start with the typed text; none if there is no readable store."""
        try:
            reader = session_of(ctx).reader()
            runs = reader.runs(limit=50) if reader.exists() else []
        except (GlasshouseError, OSError):
            return []
        items = [CompletionItem(run.id, help=f"{run.label}, {run.state}") for run in runs]
        items.append(CompletionItem("last", help="the newest run"))
        return [item for item in items if item.value.startswith(incomplete)]


RUN_ID: Final = RunId()


def _say_new(session: Session) -> None:
    """Say that a home was made: a mistyped path would otherwise look like a home that has lost its runs."""
    if session.chosen_home:
        note(
            f"made a new home in {plain(session.home)}; if you meant an existing one, check --home or {HOME_VARIABLE}."
        )
    else:
        note(f"this is the first start: database, keys and runs are kept in {plain(session.home)}.")


def check_home(session: Session) -> None:
    """Create the home folder (0700) if it is absent, and say so; raises `StoreError` (`store_unwritable`)."""
    home, is_new = session.home, not session.home.exists()
    prepare_home(home)
    if is_new:
        _say_new(session)
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise unwritable(home, "its permissions forbid it")


def open_reader(session: Session) -> Reader:
    """The store for reading; raises `StoreError` if it is absent and the home could not hold it."""
    reader = session.reader()
    if not reader.exists():
        check_home(session)
    return reader
