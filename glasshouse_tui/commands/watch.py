"""`watch` and `logs`: follow any run, whoever started it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

import click
import msgspec

from engine.store.views import FINAL_RUN_STATES, LogLine
from glasshouse_tui.commands.base import RUN_ID, Subcommand, open_reader, session_of
from glasshouse_tui.commands.follow import watch_run
from glasshouse_tui.commands.output import as_builtins, emit_json, emit_text, plain

if TYPE_CHECKING:
    from engine.store.reader import Reader

Chain = Literal["runner", "pod"]
_CHAINS: Final = ("runner", "pod")
_PAGE: Final = 500
_POLL_SECONDS: Final = 0.2


@click.command(cls=Subcommand, short_help="Follow a run until it ends.")
@click.argument("run_id", type=RUN_ID, metavar="ID")
@click.pass_context
def watch(context: click.Context, run_id: str) -> int:
    """Follow a run until it ends, then print its row; the exit codes are those of `run`.

    Ctrl-C stops watching; the run continues. ID is any unique prefix of a run's id, or `last`.
    """
    session = session_of(context)
    return watch_run(session, open_reader(session).resolve(run_id))


def _chains(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if name not in _CHAINS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(_CHAINS)}")
    return names


@click.command(cls=Subcommand, short_help="Print a run's event logs.")
@click.argument("run_id", type=RUN_ID, metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Continue until the run ends.")
@click.option(
    "--chain", default="runner,pod", metavar="runner,pod", callback=_chains, help="Which log (default: both)."
)
@click.pass_context
def logs(context: click.Context, run_id: str, follow: bool, chain: tuple[str, ...]) -> int:
    """Print a run's two event logs in order of arrival.

    ID is any unique prefix of a run's id, or `last`.
    """
    session = session_of(context)
    reader = open_reader(session)
    run_id = reader.resolve(run_id)
    lines = (line for line in _lines(reader, run_id, follow=follow) if line.chain in chain)
    if session.json:
        emit_json({"id": run_id, "lines": as_builtins(list(lines))})
        return 0
    for line in lines:
        emit_text(_line_text(line))
    return 0


def _lines(reader: Reader, run_id: str, *, follow: bool) -> Iterator[LogLine]:
    after = 0
    while True:
        final = reader.run(run_id).summary.state in FINAL_RUN_STATES
        while page := reader.log(run_id, after=after, limit=_PAGE):
            yield from page
            after = page[-1].rowid
        if final or not follow:
            return
        time.sleep(_POLL_SECONDS)


def _line_text(line: LogLine) -> str:
    body = msgspec.json.encode(line.body).decode("utf-8")
    return f"{plain(line.ts)}  {line.chain:<6}  {line.seq:>5}  {plain(line.event)}  {plain(body)}"
