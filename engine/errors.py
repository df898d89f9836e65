"""Errors that a user can act on: a stable code, a sentence, and what to do."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from engine.hints import HINTS

MAX_CAUSES: Final = 4
MAX_CAUSE_TEXT: Final = 200
_PATH: Final = re.compile(r"(?<![\w.])~?/(?:[^\s/'\",;:]+/)*([^\s/'\",;:]+)")


class GlasshouseError(Exception):
    """Base of every error that reaches a user.

    `code` is stable and machine-readable; `message` is one sentence without secrets; `hint` says what to do, by default
    what `engine.hints` says of the code. `exit_code` is the exit status of the command line: 1 for a failed run or
    check, 2 for wrong usage.
    """

    default_code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.message = message
        self.hint = hint or HINTS.get(self.code, "")

    def as_dict(self) -> dict[str, str]:
        """`{"code", "message", "hint"}`, for `--json`."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UsageError(GlasshouseError):
    """A command, option or input that cannot be used as given."""

    default_code = "usage"
    exit_code = 2


class PlanError(UsageError):
    """A plan or preset that cannot run."""

    default_code = "plan_invalid"


class DataError(UsageError):
    """A data file, tokenizer or model folder that cannot be used."""

    default_code = "data_invalid"


class MissingExtraError(UsageError):
    """An optional part of the installation is absent."""

    default_code = "extra_missing"


class StoreError(GlasshouseError):
    """The home folder or its database cannot be used."""

    default_code = "store_unusable"


class WireError(GlasshouseError):
    """Bytes from the allocation that violate the event format or its hash chain."""

    default_code = "wire_invalid"


class SealingError(GlasshouseError):
    """A package, key or sealed adapter that cannot be made or opened."""

    default_code = "sealing_failed"


class RefusedError(GlasshouseError):
    """The protected path refused; `code` is the reason code of the refusal matrix."""

    default_code = "refused"


class RemoteError(GlasshouseError):
    """An SSH connection, staging or collecting failed."""

    default_code = "remote_failed"


class ProviderError(GlasshouseError):
    """An allocation could not be acquired, observed or released."""

    default_code = "provider_failed"


class RunError(GlasshouseError):
    """A run that cannot continue."""

    default_code = "run_failed"


def causes_of(error: BaseException) -> tuple[str, ...]:
    """What an error was raised from, nearest first: at most `MAX_CAUSES` short lines without paths.

    Of an error that is not ours only the type is given, and the system's own words for an `OSError`: its text may hold
    anything, a secret included.
    """
    causes: list[str] = []
    seen = error.__cause__
    while seen is not None and len(causes) < MAX_CAUSES:
        causes.append(_cause(seen))
        seen = seen.__cause__
    return tuple(causes)


def _cause(error: BaseException) -> str:
    name = type(error).__name__
    text = f"{name}: {error.strerror}" if isinstance(error, OSError) and error.errno and error.strerror else name
    if isinstance(error, GlasshouseError):
        text = f"{error.code}: {error.message}"
    shown = "".join(char if char.isprintable() else " " for char in text[:MAX_CAUSE_TEXT])
    return _PATH.sub(r"\1", shown)
