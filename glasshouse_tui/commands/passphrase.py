"""Where a passphrase comes from: a file, the environment, or a person at a terminal; never an option."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from engine.errors import UsageError
from glasshouse_tui.commands.output import can_ask

VARIABLE: Final = "GLASSHOUSE_PASSPHRASE"
KEYS: Final = "keys"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def passphrase_option(function: _Command) -> _Command:
    """`--passphrase-file FILE`, as `passphrase_file`."""
    return click.option(
        "--passphrase-file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help=f"The operator keys' passphrase is this file's first line (or {VARIABLE}, or asked for).",
    )(function)


def given_passphrase(file: Path | None) -> str | None:
    """The passphrase of the file or the environment, or None where neither gives one; raises `UsageError`."""
    if file is None:
        return os.environ.get(VARIABLE) or None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"The passphrase file {file} cannot be read: {why}.", "Check --passphrase-file.") from error
    if not lines or not lines[0]:
        raise UsageError(f"The passphrase file {file} is empty.", "Its first line is the passphrase.")
    return lines[0]


def asked_passphrase(file: Path | None, *, what: str, confirm: bool = False) -> str:
    """The passphrase as given, else as a person types it, unechoed; raises `UsageError` off a terminal."""
    given = given_passphrase(file)
    if given is not None:
        return given
    if not can_ask():
        raise UsageError(
            f"A passphrase for {what} is needed, and nobody is at a terminal to type it.",
            f"Set {VARIABLE} or give --passphrase-file FILE.",
            code="passphrase_needed",
        )
    typed: str = click.prompt(f"Passphrase for {what}", hide_input=True, confirmation_prompt=confirm, err=True)
    return typed


def passphrase_if_needed(home: Path, file: Path | None) -> str | None:
    """As given, or asked for where the operator's keys are under a passphrase; else None."""
    given = given_passphrase(file)
    if given is not None:
        return given
    from engine.sealing.operator_keys import status

    return asked_passphrase(None, what="the operator's keys") if status(home / KEYS).encrypted else None
