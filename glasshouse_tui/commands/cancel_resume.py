"""`cancel` and `resume`: a request to a run's runner, and a new runner for a run that has lost its own."""

from __future__ import annotations

import click

from engine.errors import GlasshouseError, UsageError
from engine.store.views import FINAL_RUN_STATES
from glasshouse_tui.commands.base import (
    RUN_ID,
    QuietSubcommand,
    Session,
    Subcommand,
    check_home,
    note_runs_without_runner,
    open_reader,
    runs_without_runner,
    session_of,
)
from glasshouse_tui.commands.follow import watch_run
from glasshouse_tui.commands.output import emit_json, emit_text, say


@click.command(cls=Subcommand, short_help="Stop a run; it zeroizes and cleans up.")
@click.argument("run_id", type=RUN_ID, metavar="ID")
@click.pass_context
def cancel(context: click.Context, run_id: str) -> int:
    """Request a run to stop, zeroize and clean up.

    A run without a runner gets a new one for that. ID is any unique prefix of a run's id, or `last`.
    """
    session = session_of(context)
    reader = open_reader(session)
    run_id = reader.resolve(run_id)
    summary = reader.run(run_id).summary
    if summary.state in FINAL_RUN_STATES:
        raise UsageError(
            f"Run {run_id} is already {summary.state}, so there is nothing to cancel.",
            f"`glasshouse show {run_id}` prints its row.",
            code="run_final",
        )
    with session.writer() as writer:
        writer.request(run_id, "cancel")
    if summary.orphaned:
        _resume(session, run_id)
    if session.json:
        emit_json({"id": run_id, "requested": "cancel", "state": summary.state})
    else:
        emit_text(f"Run {run_id} is being cancelled and cleans up; `glasshouse watch {run_id}` follows it.")
    return 0


@click.command(cls=QuietSubcommand, short_help="Continue a run whose runner has died.")
@click.argument("run_id", type=RUN_ID, metavar="[ID]", required=False)
@click.option("--detach", is_flag=True, help="With ID: do not follow the run.")
@click.pass_context
def resume(context: click.Context, run_id: str | None, detach: bool) -> int:
    """Continue a run whose runner has died, and follow it; without ID, continue all such runs without following.

    Completed work is not repeated. ID is any unique prefix of a run's id, or `last`.
    """
    session = session_of(context)
    if run_id is None:
        return _resume_all(session)
    reader = open_reader(session)
    run_id = reader.resolve(run_id)
    summary = reader.run(run_id).summary
    if summary.state in FINAL_RUN_STATES:
        raise UsageError(
            f"Run {run_id} is already {summary.state}, so there is nothing to resume.",
            f"`glasshouse show {run_id}` prints its row.",
            code="run_final",
        )
    if not summary.orphaned:
        raise UsageError(
            f"Run {run_id} already has a runner.",
            f"`glasshouse watch {run_id}` follows it.",
            code="run_locked",
        )
    _resume(session, run_id)
    note_runs_without_runner(session)
    if not detach:
        return watch_run(session, run_id)
    _print_resumed(session, [run_id], [])
    return 0


def _resume(session: Session, run_id: str) -> None:
    from engine.runner.start import resume_run

    resume_run(session.home, run_id)


def _resume_all(session: Session) -> int:
    check_home(session)
    resumed: list[str] = []
    refused: list[tuple[str, GlasshouseError]] = []
    for run_id, _label in runs_without_runner(session):
        try:
            _resume(session, run_id)
            resumed.append(run_id)
        except GlasshouseError as error:
            refused.append((run_id, error))
    _print_resumed(session, resumed, refused)
    return 1 if refused else 0


def _print_resumed(session: Session, resumed: list[str], refused: list[tuple[str, GlasshouseError]]) -> None:
    if session.json:
        failed = [{"id": run_id, "error": error.as_dict()} for run_id, error in refused]
        emit_json({"resumed": [{"id": run_id} for run_id in resumed], "failed": failed})
        return
    for run_id in resumed:
        emit_text(f"Run {run_id} continues; `glasshouse watch {run_id}` follows it.")
    for run_id, error in refused:
        say(f"error: run {run_id} was not resumed: {error.message}")
        if error.hint:
            say(f"  {error.hint}")
    if not resumed and not refused:
        emit_text("No unfinished run needs a runner.")
