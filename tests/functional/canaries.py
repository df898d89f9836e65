"""Looks for words that were planted in a run's inputs, in everything that it left behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

MAY_LOCATE = frozenset({"allocations.detail"})
"""Columns that hold where an allocation is, so that a restarted runner finds it."""


def columns(home: Path) -> Iterator[tuple[str, bytes]]:
    """Every column of every table that holds text or bytes, by name, with all that is in it."""
    database = sqlite3.connect(home / "glasshouse.db")
    database.text_factory = bytes
    tables = [name.decode() for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        names = [row[1].decode() for row in database.execute(f"PRAGMA table_info({table})")]
        for name in names:
            cells = database.execute(f"SELECT {name} FROM {table}")  # noqa: S608  # the names are the schema's own
            values = [value for (value,) in cells if isinstance(value, bytes)]
            yield f"{table}.{name}", b"\0".join(values)
    database.close()


def files(home: Path) -> Iterator[tuple[str, bytes]]:
    """Every file under a home, by name."""
    for path in home.rglob("*"):
        if path.is_file():
            yield str(path.relative_to(home)), path.read_bytes()


def found(canaries: Mapping[str, str], places: Iterator[tuple[str, bytes]]) -> list[tuple[str, str]]:
    """(canary's name, place) for every canary that is somewhere."""
    return [(name, place) for place, content in places for name, word in canaries.items() if word.encode() in content]
