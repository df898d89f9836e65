"""`runs` and `show`: the list of runs, and one row in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click

from engine.store.views import FINAL_RUN_STATES, RunSummary, Source
from engine.system.clock import utc
from glasshouse_tui.commands.base import RUN_ID, Subcommand, open_reader, session_of
from glasshouse_tui.commands.follow import print_row
from glasshouse_tui.commands.output import (
    UNKNOWN,
    as_builtins,
    emit_json,
    emit_text,
    failure_lines,
    known,
    plain,
    table,
)
from glasshouse_tui.format import day, moment

_SOURCES: Final[dict[str, tuple[Source, ...]]] = {
    "mine": ("mine",),
    "published": ("published",),
    "all": ("mine", "published"),
}
_NUMBERS: Final = frozenset({4, 5, 6})


def _sources(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[Source, ...]:
    """The comma-separated sources, without duplicates."""
    sources: dict[Source, None] = {}
    for name in value.split(","):
        if name.strip() not in _SOURCES:
            raise click.BadParameter(f"{name.strip()!r} is not one of mine, published, all")
        sources.update(dict.fromkeys(_SOURCES[name.strip()]))
    return tuple(sources)


@click.command(cls=Subcommand, short_help="List runs, newest first.")
@click.option(
    "--source",
    default="mine",
    metavar="mine,published,all",
    callback=_sources,
    help="Whose runs (default: mine).",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Show at most the newest N.")
@click.pass_context
def runs(context: click.Context, source: tuple[Source, ...], limit: int | None) -> int:
    """List runs, newest first."""
    session = session_of(context)
    listed = open_reader(session).runs(source=source, limit=limit)
    if session.json:
        emit_json({"runs": as_builtins(listed)})
    elif listed:
        emit_text("\n\n".join([_runs_table(listed), *_newest_failure(listed)]))
    else:
        emit_text("No runs yet. `glasshouse demo` starts the first.")
    return 0


def _runs_table(listed: Sequence[RunSummary]) -> str:
    zone = utc().astimezone().tzname() or "local"
    head = ("id", "label", "state", "clean", "raw", "protected", "overhead", f"started ({zone})", "reason")
    return table(head, [_cells(run) for run in listed], right=_NUMBERS)


def _cells(run: RunSummary) -> tuple[str, ...]:
    state = f"{run.state}, no runner" if run.orphaned else run.state
    judged = run.state in FINAL_RUN_STATES and run.source == "mine"
    overhead = f"{run.overhead_pct:.2f} %" if run.overhead_pct is not None else UNKNOWN
    if run.timing_slack_pct is not None:
        overhead += f" (timing ±{run.timing_slack_pct:.2f} %)"
    return (
        plain(run.id),
        plain(run.label),
        state,
        known(run.clean) if judged else "-",
        known(run.raw_steps) if run.segments != "protected" else "-",
        known(run.protected_steps) if run.segments != "raw" else "-",
        overhead if run.segments == "pair" else "-",
        day(run.created_at) if run.source == "published" else moment(run.started_at or run.created_at),
        "" if run.error is None else plain(run.error.code),
    )


def _newest_failure(listed: Sequence[RunSummary]) -> list[str]:
    """The newest failure with what to do about it; `show` has that of the others."""
    for run in listed:
        if run.error is not None and run.state != "cancelled":
            return ["\n".join([f"{plain(run.id)}  {plain(run.error.text)}", *failure_lines(run.error)])]
    return []


@click.command(cls=Subcommand, short_help="Show one row with every check.")
@click.argument("run_id", type=RUN_ID, metavar="ID")
@click.pass_context
def show(context: click.Context, run_id: str) -> int:
    """Show one row: both segments, the overhead, and every check of both verdicts.

    ID is any unique prefix of a run's id, or `last`.
    """
    session = session_of(context)
    reader = open_reader(session)
    print_row(session, reader.run(reader.resolve(run_id)))
    return 0
