"""Read a passphrase from a file, the environment or a prompt; never from an option's value."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from engine.errors import UsageError
from engine.system.files import read_named
from glasshouse_tui.commands.output import can_ask

VARIABLE: Final = "GLASSHOUSE_PASSPHRASE"
MAX_FILE_BYTES: Final = 64 * 1024
KEYS: Final = "keys"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def passphrase_option(function: _Command) -> _Command:
    """`--passphrase-file FILE`, as `passphrase_file`."""
    return click.option(
        "--passphrase-file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help=f"Read the passphrase of the operator keys from the first line of FILE (or {VARIABLE}, or a prompt).",
    )(function)


def given_passphrase(file: Path | None) -> str | None:
    """The passphrase from the file or the environment, or None if neither has one; raises `UsageError`."""
    if file is None:
        return os.environ.get(VARIABLE) or None
    try:
        lines = read_named(file, MAX_FILE_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(
            f"The passphrase file {file} cannot be read: {why}.",
            f"Give --passphrase-file a regular file, or set {VARIABLE}.",
        ) from error
    if not lines or not lines[0]:
        raise UsageError(f"The passphrase file {file} is empty.", "Put the passphrase on its first line.")
    return lines[0]


def require_passphrase(file: Path | None, *, what: str, confirm: bool = False) -> str:
    """The passphrase from file or environment, else from a prompt without echo; raises `UsageError` off a terminal."""
    given = given_passphrase(file)
    if given is not None:
        return given
    if not can_ask():
        raise UsageError(
            f"A passphrase for {what} is needed, and there is no terminal to ask on.",
            f"Set {VARIABLE} or give --passphrase-file FILE.",
            code="passphrase_needed",
        )
    typed: str = click.prompt(f"Passphrase for {what}", hide_input=True, confirmation_prompt=confirm, err=True)
    return typed


def passphrase_if_needed(home: Path, file: Path | None) -> str | None:
    """The passphrase from file or environment, or from a prompt if the operator's keys need one; else None."""
    given = given_passphrase(file)
    if given is not None:
        return given
    from engine.sealing.operator_keys import status

    return require_passphrase(None, what="the operator's keys") if status(home / KEYS).encrypted else None
