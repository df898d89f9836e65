"""How a data file is split into records: by what is in it, and by its name only where that does not decide."""

from __future__ import annotations

import codecs
import json
from pathlib import PurePath
from typing import Any, Final, Literal

from engine.errors import DataError
from engine.payload.data.formats import KNOWN
from engine.payload.data.lines import BOM, scan
from engine.payload.data.records import MAX_RECORD_BYTES, shown_name

Container = Literal["lines", "array", "object", "values", "csv", "parquet", "text"]

DELIMITERS: Final = ",;\t"
"""What may separate the cells of CSV."""
HEAD: Final = MAX_RECORD_BYTES + 1
"""The bytes that `container_of` wants, if there are so many."""
SUFFIXES: Final[dict[str, Container]] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "lines",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
_PARQUET: Final = b"PAR1"
_FOREIGN: Final = {
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"SQLite format 3": "a SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed twice",
}


def suffix_of(name: str) -> str:
    """The extension that says what a file is, in lower case and without `.gz`."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix == ".gz" else path.suffix


def container_of(name: str, head: bytes) -> Container:
    """How a file is split, by its first bytes (expanded) and its name.

    Raises `DataError`: `data_not_utf8` for UTF-16 and UTF-32, `data_container_unknown` for archives and databases.
    """
    _refuse_foreign(shown_name(name), head)
    if head.startswith(_PARQUET):
        return "parquet"
    start = head.removeprefix(BOM).lstrip()
    by_name = SUFFIXES.get(suffix_of(name), "lines")
    if by_name == "text":
        return "lines" if _is_object(start.partition(b"\n")[0]) else "text"
    if start.startswith(b"["):
        return "array"
    if start.startswith(b"{"):
        return _of_object(start, whole=len(head) < HEAD)
    if by_name == "lines" and _is_header(start.partition(b"\n")[0]):
        return "csv"
    if by_name == "parquet":
        raise _unknown(shown_name(name), "not Parquet, whatever its name says")
    return by_name


def _refuse_foreign(name: str, head: bytes) -> None:
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise _unknown(name, what)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\x00" in head[:4]:
        raise DataError(
            f"The data file {name} is UTF-16 or UTF-32, not UTF-8.", "Save the file as UTF-8.", code="data_not_utf8"
        )


def _unknown(name: str, what: str) -> DataError:
    return DataError(
        f"The data file {name} is {what}.",
        "Give JSONL, a JSON array, CSV or Parquet; the first three may be compressed with gzip.",
        code="data_container_unknown",
    )


def _is_object(line: bytes) -> bool:
    """Whether a line is an object of JSON."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_header(line: bytes) -> bool:
    """Whether a line is the header of a table with a column that is known; none of them begins JSON."""
    names = line.decode("utf-8", "replace").strip().replace('"', "")
    return any(KNOWN & set(names.split(delimiter)) for delimiter in DELIMITERS)


def _of_object(start: bytes, *, whole: bool) -> Container:
    """For a file that begins with an object: JSONL, objects over several lines, or one object around an array."""
    line, newline, rest = start.partition(b"\n")
    if not newline and not whole:  # the line is longer than a record
        return "lines" if _first_key(start) in KNOWN else "object"
    if _goes_on(line) and rest.strip() and not _is_object(rest.lstrip().partition(b"\n")[0]):
        return "object" if _first_key(start) not in KNOWN and b"[" in start else "values"
    if rest.strip() or not _is_object(line):
        return "lines"
    return "object" if _wraps(json.loads(line)) else "lines"


def _goes_on(line: bytes) -> bool:
    """Whether a line is JSON as far as it goes, and ends between two of its signs: what follows may complete it."""
    try:
        scan(line.decode("utf-8", "replace"))
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc.rstrip())
    return False


def _wraps(value: dict[str, Any]) -> bool:
    """Whether an object is no record, but holds one array of them."""
    arrays = [each for each in value.values() if isinstance(each, list)]
    return not KNOWN & value.keys() and len(arrays) == 1 and all(isinstance(each, dict) for each in arrays[0])


def _first_key(start: bytes) -> str:
    """The first key of an object, "" if it has none."""
    try:
        key, _ = scan(start[1:].decode("utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        return ""
    return key if isinstance(key, str) else ""
