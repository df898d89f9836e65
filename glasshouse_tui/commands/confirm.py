"""Yes-or-no questions. A no is the user's own wish: nothing was done, and the command says so and exits 1."""

from __future__ import annotations

import sys
from typing import Final

from engine.errors import GlasshouseError, UsageError
from glasshouse_tui.commands.output import can_ask, say

_YES: Final = ("y", "yes")
_NO: Final = ("", "n", "no")


class Declined(GlasshouseError):
    """The user answered no, or ended the input; `message` says what was not done."""

    default_code = "declined"


def require_terminal(what: str, *, json: bool) -> None:
    """Raise `UsageError` (`confirmation_needed`) where nobody can be asked; `what` begins its sentence."""
    if json or not can_ask():
        raise UsageError(
            f"{what} needs confirmation, and there is no terminal to ask on.",
            "Add --yes to confirm.",
            code="confirmation_needed",
        )


def confirm(question: str, *, declined: str) -> None:
    """Ask on the terminal. Raises `Declined` with this sentence on a no or at the end of the input (Ctrl-D).

    Ctrl-C raises `KeyboardInterrupt`, as everywhere.
    """
    while True:
        sys.stderr.write(f"{question} [y/N]: ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        answer = line.strip().lower()
        if not line:
            say("")
        elif answer in _YES:
            return
        elif answer not in _NO:
            say("Please answer y or n.")
            continue
        raise Declined(declined)
