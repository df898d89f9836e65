"""Searches everything that a run left behind for canary words that were planted in its inputs."""

from __future__ import annotations

import base64
import binascii
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

MAY_LOCATE = frozenset({"allocations.detail"})
"""Columns that hold where an allocation is, so that a restarted runner finds it."""


def columns(home: Path) -> Iterator[tuple[str, bytes]]:
    """Every text or bytes column of every table: its name and all its values."""
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
    """Every file under a home: its relative path and content."""
    for path in home.rglob("*"):
        if path.is_file():
            yield str(path.relative_to(home)), path.read_bytes()


_ENCODED = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")


def opened(text: bytes, depth: int = 3) -> bytes:
    """A text, followed by what is base64-encoded in it, as in signed statements and tokens."""
    inner = []
    for piece in _ENCODED.findall(text) if depth else ():
        try:
            data = base64.b64decode(piece.rstrip(b"=") + b"==", altchars=b"-_" if re.search(rb"[-_]", piece) else None)
        except binascii.Error:
            continue
        if data.isascii():
            inner.append(opened(data, depth - 1))
    return b"\0".join([text, *inner])


def occurrences(canaries: Mapping[str, str], places: Iterator[tuple[str, bytes]]) -> list[tuple[str, str]]:
    """(canary's name, place) for every occurrence of a canary."""
    return [(name, place) for place, content in places for name, word in canaries.items() if word.encode() in content]
