"""What commands share: the session, `--json` and `--home`, lazy loading, the mention of unattended runs."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from engine.errors import GlasshouseError
from engine.plan import RENTED
from glasshouse_tui.allocation_status import is_left_alone, totals
from glasshouse_tui.commands.output import note
from glasshouse_tui.format import money

if TYPE_CHECKING:
    from engine.store.reader import Reader
    from engine.store.views import AllocationView
    from engine.store.writer import Writer


import os
from typing import TYPE_CHECKING

from engine.store.home import prepare_home, unwritable

if TYPE_CHECKING:
    from engine.store.reader import Reader


HOME_VARIABLE: Final = "GLASSHOUSE_HOME"


@dataclass
class Session:
    """One invocation: where the home is, and whether stdout carries JSON. Filled while options are parsed."""

    chosen_home: str | None = None
    json: bool = False

    @property
    def home(self) -> Path:
        """The home folder, absolute; it need not exist."""
        if self.chosen_home:
            return Path(self.chosen_home).expanduser().absolute()
        from platformdirs import user_data_dir

        return Path(user_data_dir("glasshouse", appauthor=False))

    def reader(self) -> Reader:
        """The store for reading; raises `StoreError` when its database cannot be used."""
        from engine.store.reader import Reader

        return Reader(self.home)

    def writer(self) -> Writer:
        """The store for requests; makes home and database; raises `StoreError`."""
        from engine.store.writer import Writer

        return Writer(self.home)


def session_of(context: click.Context) -> Session:
    """The session of this invocation."""
    session: Session = context.ensure_object(Session)
    return session


def _keep_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        session_of(context).json = True


def _keep_home(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value:
        session_of(context).chosen_home = value


def json_option() -> click.Option:
    """`--json`."""
    return click.Option(
        ["--json"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_keep_json,
        help="Print one JSON document on stdout, and nothing else there.",
    )


def home_option() -> click.Option:
    """`--home DIR`."""
    return click.Option(
        ["--home"],
        metavar="DIR",
        type=click.Path(file_okay=True),
        expose_value=False,
        callback=_keep_home,
        help=f"Where database, keys and run folders lie (or {HOME_VARIABLE}; default: the user data folder).",
    )


def unattended(session: Session) -> list[tuple[str, str]]:
    """(id, label) of every unfinished run that nobody is running; raises `StoreError`."""
    with session.reader() as reader:
        runs = reader.unfinished() if reader.exists() else []
        return [(run.id, run.label) for run in runs if run.orphaned]


def mention_unattended(session: Session) -> None:
    """Say on stderr which unfinished runs nobody is running."""
    try:
        runs = unattended(session)
    except (GlasshouseError, OSError):
        return  # a command that needs the store says what is wrong with it
    if len(runs) == 1:
        run_id, label = runs[0]
        note(
            f"run {run_id} ({label}) is unfinished and nobody is running it; `glasshouse resume {run_id}` continues it."
        )
    elif runs:
        named = ", ".join(run_id for run_id, _ in runs)
        note(
            f"{len(runs)} runs are unfinished and nobody is running them ({named}); `glasshouse resume` continues them."
        )


def left_alone(session: Session) -> list[AllocationView]:
    """What is rented, or not proven gone, and neither kept nor in use; raises `StoreError`."""
    with session.reader() as reader:
        entries = reader.allocations(open_only=True) if reader.exists() else []
        if not entries:
            return []
        living = {run.id for run in reader.unfinished() if not run.orphaned}
        return [
            one
            for one in entries
            if (one.provider in RENTED or one.state == "leaked")
            and is_left_alone(one, living)
            and not (one.run_id is None and reader.is_claimed(one.id))
        ]


def mention_allocations(session: Session) -> None:
    """Say on stderr what is rented and left alone."""
    try:
        found = left_alone(session)
    except (GlasshouseError, OSError):
        return  # a command that needs the store says what is wrong with it
    if found:
        from engine.runner.spawn import ensure_sentinel

        with contextlib.suppress(OSError):
            ensure_sentinel(session.home)  # it may have died, or this machine was started anew
        which = "1 allocation is" if len(found) == 1 else f"{len(found)} allocations are"
        cost = totals(found)
        least = "" if cost.complete else "at least "
        note(
            f"{which} open without a living run, at {least}{money(cost.price_per_hour, '/h')}; "
            "`glasshouse allocations` shows what, `glasshouse cleanup` ends it."
        )


class Subcommand(click.Command):
    """A command with `--json` and `--home` that mentions unattended runs and allocations before it starts."""

    mentions: bool = True
    mentions_allocations: bool = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend([home_option(), json_option()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; its return value is the exit code (None is 0)."""
        if self.mentions:
            mention_unattended(session_of(ctx))
        if self.mentions_allocations:
            mention_allocations(session_of(ctx))
        return super().invoke(ctx)


class QuietSubcommand(Subcommand):
    """A command whose own subject are the unattended runs, or that is about no home at all."""

    mentions = False
    mentions_allocations = False


class AllocationSubcommand(Subcommand):
    """A command whose own subject are the allocations."""

    mentions_allocations = False


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is looked up."""

    def __init__(self, *args: Any, lazy: Mapping[str, str], **kwargs: Any) -> None:
        """`lazy` maps a command's name to `module:attribute`."""
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order in which they were given."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now, or None."""
        place = self._lazy.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


class RunId(click.ParamType[str]):
    """A run's id, any unique prefix of it, or `last`. Completes from the store."""

    name = "id"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The newest ids that start with what is typed; nothing where there is no readable store."""
        try:
            reader = session_of(ctx).reader()
            runs = reader.runs(limit=50) if reader.exists() else []
        except (GlasshouseError, OSError):
            return []
        items = [CompletionItem(run.id, help=f"{run.label}, {run.state}") for run in runs]
        items.append(CompletionItem("last", help="the newest run"))
        return [item for item in items if item.value.startswith(incomplete)]


RUN_ID: Final = RunId()


def check_home(home: Path) -> None:
    """Make the home folder (0700) where it is absent; raises `StoreError` (`store_unwritable`)."""
    prepare_home(home)
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise unwritable(home, "its permissions forbid it")


def open_reader(session: Session) -> Reader:
    """The store for reading; raises `StoreError` where the home could not hold one either."""
    reader = session.reader()
    if not reader.exists():
        check_home(session.home)
    return reader
