"""One record of a data file before it has a meaning: its place and its JSON text; and what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from engine.system.text import visible

MAX_RECORD_BYTES: Final = 1024 * 1024
_SHOWN_KEY: Final = 40
_SHOWN_KEYS: Final = 8
_SHOWN_NAME: Final = 80


class Record(msgspec.Struct, frozen=True):
    """One sample as it was read. `place` is as in `Fault`; `raw` is JSON (UTF-8), at most `MAX_RECORD_BYTES`.

    A row of a table and a text file are records too: the reader writes them as a JSON object.
    """

    place: str
    raw: bytes


class Problem(Exception):
    """What is wrong with a record, wherever it was read: the `code` and `what` of a `Fault`."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.code = code
        self.what = what

    def __reduce__(self) -> tuple[type[Problem], tuple[str, str]]:
        return Problem, (self.code, self.what)


def shown(key: str) -> str:
    """A key of the data as an error may show it: one line, escaped, at most 40 characters."""
    return visible(key[:_SHOWN_KEY]) + ("..." if len(key) > _SHOWN_KEY else "")


def listed(keys: Iterable[str]) -> str:
    """Keys as an error may show them, at most eight, sorted."""
    names = sorted(keys)
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return ", ".join(map(shown, names[:_SHOWN_KEYS])) + more


def shown_name(name: str) -> str:
    """A file's name as a place may show it."""
    return visible(name[:_SHOWN_NAME]) + ("..." if len(name) > _SHOWN_NAME else "")
