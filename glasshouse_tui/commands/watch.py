"""`watch` and `logs`: follow any run, whoever started it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import click
import msgspec

from engine.store.views import FINAL_RUN_STATES, LogLine, RunView, Transition
from glasshouse_tui.commands.base import RUN_ID, Subcommand, open_reader, session_of
from glasshouse_tui.commands.follow import watch_run
from glasshouse_tui.commands.output import (
    as_builtins,
    emit_json,
    emit_text,
    failure_lines,
    failures_document,
    other_failures,
    plain,
    say,
)

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
    """Print a run's two event logs in order of arrival, with the runner's warnings and, at the end, why it failed.

    ID is any unique prefix of a run's id, or `last`.
    """
    session = session_of(context)
    reader = open_reader(session)
    run_id = reader.resolve(run_id)
    entries = (one for one in _entries(reader, run_id, follow=follow) if _chain_of(one) in chain)
    if session.json:
        emit_json(_document(reader, run_id, list(entries)))
        return 0
    for entry in entries:
        emit_text(_line_text(entry) if isinstance(entry, LogLine) else _warning_text(entry))
    _say_failures(reader.run(run_id))
    return 0


def _document(reader: Reader, run_id: str, entries: Sequence[LogLine | Transition]) -> dict[str, Any]:
    view = reader.run(run_id)
    return {
        "id": run_id,
        "lines": as_builtins([one for one in entries if isinstance(one, LogLine)]),
        "warnings": [{"at": one.at, "text": one.reason} for one in entries if isinstance(one, Transition)],
        "error": as_builtins(view.summary.error),
        "failures": failures_document(view),
    }


def _chain_of(entry: LogLine | Transition) -> str:
    """The log that an entry belongs to; the warnings are the runner's."""
    return entry.chain if isinstance(entry, LogLine) else "runner"


def _entries(reader: Reader, run_id: str, *, follow: bool) -> Iterator[LogLine | Transition]:
    """The events in order of arrival, each warning before the first event that the runner logged after it."""
    after, warned = 0, 0
    while True:
        view = reader.run(run_id)
        warnings = [one for one in view.warnings if one.id > warned]
        while page := reader.log(run_id, after=after, limit=_PAGE):
            for line in page:
                while warnings and line.chain == "runner" and line.ts > warnings[0].at:
                    yield warnings.pop(0)
                yield line
            after = page[-1].rowid
        yield from warnings
        warned = max([warned, *(one.id for one in view.warnings)])
        if view.summary.state in FINAL_RUN_STATES or not follow:
            return
        time.sleep(_POLL_SECONDS)


def _say_failures(view: RunView) -> None:
    failure = view.summary.error
    lines = [] if failure is None else [f"error: {plain(failure.text)}", *failure_lines(failure)]
    if lines := [*lines, *other_failures(view)]:
        say("\n".join(lines))


def _warning_text(warning: Transition) -> str:
    return f"{plain(warning.at)}  runner         warning  {plain(warning.reason)}"


def _line_text(line: LogLine) -> str:
    body = msgspec.json.encode(line.body).decode("utf-8")
    return f"{plain(line.ts)}  {line.chain:<6}  {line.seq:>5}  {plain(line.event)}  {plain(body)}"
