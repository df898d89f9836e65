"""The command line, `glasshouse`; its commands live in `glasshouse_tui.commands`, imported when asked for."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import IO, Final

import click

from engine.errors import UsageError
from glasshouse_tui.commands.base import (
    HOME_VARIABLE,
    LazyGroup,
    Session,
    home_option,
    json_option,
    mention_unattended,
    session_of,
)
from glasshouse_tui.commands.failures import INTERRUPTED, Failure, explain
from glasshouse_tui.commands.output import emit_json, emit_text, on_terminal, say

_ROOM: Final = "glasshouse_tui.commands"
COMMANDS: Final = {
    "demo": f"{_ROOM}.run:demo",
    "run": f"{_ROOM}.run:run",
    "runs": f"{_ROOM}.runs:runs",
    "show": f"{_ROOM}.runs:show",
    "watch": f"{_ROOM}.watch:watch",
    "logs": f"{_ROOM}.watch:logs",
    "cancel": f"{_ROOM}.cancel_resume:cancel",
    "resume": f"{_ROOM}.cancel_resume:resume",
    "allocations": f"{_ROOM}.allocations:allocations",
    "cleanup": f"{_ROOM}.cleanup:cleanup",
    "adapter": f"{_ROOM}.adapter:adapter",
    "export": f"{_ROOM}.export:export",
    "verify": f"{_ROOM}.export:verify",
    "presets": f"{_ROOM}.presets:presets",
    "key": f"{_ROOM}.key:key",
    "doctor": f"{_ROOM}.doctor:doctor",
    "completions": f"{_ROOM}.completions:completions",
}


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("glasshouse")
    except PackageNotFoundError:
        found = "unknown (not installed)"
    if session_of(context).json:
        emit_json({"version": found})
    else:
        emit_text(f"glasshouse {found}")
    context.exit(0)


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--read-only", is_flag=True, help="Open the console without keys that start or change anything.")
@click.pass_context
def root(context: click.Context, read_only: bool) -> int | None:
    """Train twice on one allocation, raw and protected, and see what protection costs and what can be proven.

    Without a command it opens the console. Exit codes: 0 done, 1 the run or check failed, 2 usage,
    3 done but not clean, 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        return None
    session = session_of(context)
    if session.json or not on_terminal():
        raise UsageError(
            "The console needs a terminal.",
            "Use a command instead: `glasshouse demo` runs headless, `glasshouse --help` lists all.",
            code="not_a_terminal",
        )
    mention_unattended(session)
    from glasshouse_tui.app import run_console

    return run_console(session.home, read_only=read_only)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's); its exit code. No failure escapes as a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    session = Session(chosen_home=os.environ.get(HOME_VARIABLE))
    _prepare_streams()
    try:
        code = root.main(arguments, prog_name="glasshouse", standalone_mode=False, obj=session)
        sys.stdout.flush()
        return int(code or 0)
    except SystemExit as error:  # shell completion ends this way
        return error.code if isinstance(error.code, int) else 1
    except BrokenPipeError:
        _abandon(sys.stdout)
        return 1
    except BaseException as error:  # the outermost layer: every failure ends as a sentence and an exit code
        failure = explain(error, session.home)
        if isinstance(error, click.UsageError):
            session.json = session.json or _asks_for_json(arguments)
    return _report(failure, session)


def _prepare_streams() -> None:
    """Closed output streams lead nowhere; on open ones what the encoding lacks is spelled out."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """True when `--json` stands among the options, for a command line that did not parse."""
    return "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def _report(failure: Failure, session: Session) -> int:
    """Write the failure to where this invocation expects it."""
    try:
        sys.stdout.flush()
        if session.json:
            emit_json(failure.as_document())
            return failure.exit_code
    except OSError as error:
        _abandon(sys.stdout)
        if error.errno == errno.EPIPE:
            return failure.exit_code
    if failure.exit_code == INTERRUPTED and not failure.hint:
        say("Interrupted.")
    else:
        say(failure.as_text())
    return failure.exit_code


def _abandon(stream: IO[str]) -> None:
    """Point a stream whose reader has gone, or that is full, at nothing, so that closing it stays silent."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
    except (OSError, ValueError):
        return


root.params.extend(
    [
        home_option(),
        json_option(),
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            callback=_version,
            help="Show the version and exit.",
        ),
    ]
)

if __name__ == "__main__":
    sys.exit(main())
