"""Why something failed, as it is stored: code, sentence, hint and causes. Never published, so it may name paths."""

from __future__ import annotations

import re
import sqlite3
from typing import Final, Self

import msgspec

from engine.errors import GlasshouseError, causes_of
from engine.hints import HINTS
from engine.wire import canonical, parse

MAX_TEXT: Final = 2000
_REASON: Final = re.compile(r"([a-z0-9_]+): (.+)", re.DOTALL)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One failure. `cause`: what it came from, nearest first, without secrets and paths."""

    code: str
    message: str
    hint: str = ""
    cause: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: GlasshouseError) -> Self:
        """The failure that an error is about."""
        return cls(
            code=error.code, message=error.message[:MAX_TEXT], hint=error.hint[:MAX_TEXT], cause=causes_of(error)
        )

    @property
    def text(self) -> str:
        """`code: sentence`, the one line that lists show and of which the row publishes the code."""
        return f"{self.code}: {self.message}"


Reason = str | Failure
"""Why a state was entered: words, or a failure."""


def reason_text(reason: Reason) -> str:
    """The one line for the column `reason`."""
    return reason.text if isinstance(reason, Failure) else reason


def packed(reason: Reason) -> str | None:
    """The JSON for the column `error`; None for words alone."""
    return canonical(msgspec.to_builtins(reason)).decode() if isinstance(reason, Failure) else None


def read_failure(row: sqlite3.Row) -> Failure | None:
    """The failure in a row's column `error`; None when its state is no failure."""
    return None if row["error"] is None else msgspec.convert(parse(row["error"]), Failure)


def failure_of(reason: str) -> Failure | None:
    """The failure behind a line `code: sentence` of a version that stored no more; None for other words."""
    match = _REASON.fullmatch(reason)
    return None if match is None else Failure(code=match[1], message=match[2], hint=HINTS.get(match[1], ""))
