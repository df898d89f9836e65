"""The command line, `glasshouse`; its commands live in `glasshouse_tui.commands`, each imported when it is called."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import IO, Final

import click

from engine.errors import StoreError, UsageError
from glasshouse_tui.commands.base import (
    HOME_VARIABLE,
    LazyGroup,
    Session,
    check_home,
    home_option,
    json_option,
    note_runs_without_runner,
    session_of,
)
from glasshouse_tui.commands.failures import INTERRUPTED, Failure, explain
from glasshouse_tui.commands.output import emit_json, emit_text, on_terminal, say

_PACKAGE: Final = "glasshouse_tui.commands"
COMMANDS: Final = {
    "demo": f"{_PACKAGE}.run:demo",
    "run": f"{_PACKAGE}.run:run",
    "data": f"{_PACKAGE}.data:data",
    "runs": f"{_PACKAGE}.runs:runs",
    "show": f"{_PACKAGE}.runs:show",
    "watch": f"{_PACKAGE}.watch:watch",
    "logs": f"{_PACKAGE}.watch:logs",
    "cancel": f"{_PACKAGE}.cancel_resume:cancel",
    "resume": f"{_PACKAGE}.cancel_resume:resume",
    "allocations": f"{_PACKAGE}.allocations:allocations",
    "cleanup": f"{_PACKAGE}.cleanup:cleanup",
    "adapter": f"{_PACKAGE}.adapter:adapter",
    "export": f"{_PACKAGE}.export:export",
    "verify": f"{_PACKAGE}.export:verify",
    "presets": f"{_PACKAGE}.presets:presets",
    "key": f"{_PACKAGE}.key:key",
    "doctor": f"{_PACKAGE}.doctor:doctor",
    "completions": f"{_PACKAGE}.completions:completions",
}


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("glasshouse")
    except PackageNotFoundError:
        installed = "unknown (not installed)"
    if session_of(context).json:
        emit_json({"version": installed})
    else:
        emit_text(f"glasshouse {installed}")
    context.exit(0)


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--read-only", is_flag=True, help="Open the console with the keys that start or change anything disabled."
)
@click.pass_context
def root(context: click.Context, read_only: bool) -> int | None:
    """Train twice on one allocation, raw and protected, to see what protection costs and what can be proven.

    Without a command, the console opens. Exit codes: 0 done, 1 the run or check failed, 2 usage,
    3 done but not clean, 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        return None
    session = session_of(context)
    if session.json or not on_terminal():
        raise UsageError(
            "The console needs a terminal.",
            "Use a command instead, for example `glasshouse demo`; `glasshouse --help` lists them all.",
            code="not_a_terminal",
        )
    if not read_only:
        with contextlib.suppress(StoreError):  # the console itself shows why a home cannot be used
            check_home(session)
    note_runs_without_runner(session)
    from glasshouse_tui.app import run_console

    return run_console(session.home, read_only=read_only)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code. No failure escapes as a traceback."""
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
    except BaseException as error:  # the outermost layer: every failure becomes a message and an exit code
        failure = explain(error, session.home)
        if isinstance(error, click.UsageError):
            session.json = session.json or _json_requested(arguments)
    return _report(failure, session)


def _prepare_streams() -> None:
    """Redirect closed output streams to /dev/null; on open ones, escape what the encoding cannot represent."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _json_requested(arguments: Sequence[str]) -> bool:
    """True when `--json` is among the options of a command line that did not parse."""
    return "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def _report(failure: Failure, session: Session) -> int:
    """Write the failure as JSON to stdout or as text to stderr, whichever was requested."""
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
    """Redirect a stream to /dev/null when its reader is gone or its disk is full, so that closing it raises nothing."""
    try:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)
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
