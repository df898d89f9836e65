"""Records from JSON: one a line, one after the other, or the items of one array. In bounded memory."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any, Final

from engine.errors import DataError
from engine.payload.data.records import MAX_RECORD_BYTES, Record
from engine.payload.data.samples import Fault

BOM: Final = codecs.BOM_UTF8
_PIECE: Final = 1024 * 1024
_sign: Final = re.compile(r"[^ \t\r\n]").search
scan: Final = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode
"""Where a value ends; numbers stay text, however long. Raises `JSONDecodeError` or, nested deeply, `RecursionError`."""


def too_long(place: str) -> Fault:
    """The fault of a record above the limit."""
    return Fault(place=place, code="data_line_too_long", what="is longer than 1 MiB")


def from_lines(file: io.BufferedReader, prefix: str) -> Iterator[Record | Fault]:
    """A record from each line that is not blank; a line above the limit is a fault, and is not kept in memory."""
    number = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        place = f"{prefix}line {number}"
        if len(line) > MAX_RECORD_BYTES:
            yield too_long(place)
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_RECORD_BYTES)
            continue
        if number == 1:
            line = line.removeprefix(BOM)
        if line and not line.isspace():
            yield Record(place, line)


class _Text:
    """A growing piece of a file's text. A value is found whole, or more is read, up to the limit of a record."""

    def __init__(self, file: io.BufferedReader, prefix: str) -> None:
        self._file = file
        self._prefix = prefix
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._ended = False
        self.number = 0

    @property
    def place(self) -> str:
        """Of the record that is read."""
        return f"{self._prefix}record {self.number}"

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        if self._ended:
            return False
        piece = self._file.read(_PIECE)
        self._ended = not piece
        try:
            added = self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError:
            raise self.broken("is not UTF-8", "data_not_utf8") from None
        self._text = self._text[self._at :] + added
        self._at = 0
        return True

    def next_sign(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            found = _sign(self._text, self._at)
            self._at = found.start() if found else len(self._text)
            if found:
                return found[0]
            if not self._more():
                return ""

    def skip(self, sign: str) -> bool:
        """Pass over `sign` if it is next."""
        found = self.next_sign() == sign
        self._at += found
        return found

    def value(self) -> tuple[Any, str]:
        """The next value, loosely parsed, and its text."""
        self.next_sign()
        while True:
            try:
                value, end = scan(self._text, self._at)
            except (ValueError, RecursionError) as error:
                self._unfinished(error)
                continue
            if end == len(self._text) and self._more():
                continue  # a number may go on
            found = self._text[self._at : end]
            self._at = end
            return value, found

    def _unfinished(self, error: Exception) -> None:
        """Read on after a value that could not be parsed; raises `DataError` if that cannot help."""
        if isinstance(error, RecursionError):
            raise self.broken("is nested more deeply than the limit")
        if len(self._text) - self._at > MAX_RECORD_BYTES:
            raise self.broken("is longer than 1 MiB, or is not JSON", "data_line_too_long")
        if not self._more():
            raise self.broken("is not JSON")

    def broken(self, what: str, code: str = "data_json_invalid") -> DataError:
        """The refusal of a file that cannot be read on from here."""
        place = self.place[0].upper() + self.place[1:]
        return DataError(
            f"{place} of the data file {what}, so the file cannot be read on from there.",
            "Save the file again with a JSON library, as UTF-8; or write one record per line (JSONL).",
            code=code,
        )

    def record(self) -> Record | Fault:
        """The next value as a record."""
        self.number += 1
        raw = self.value()[1].encode("utf-8")
        return too_long(self.place) if len(raw) > MAX_RECORD_BYTES else Record(self.place, raw)

    def items(self) -> Iterator[Record | Fault]:
        """The items of an array whose bracket is passed."""
        if self.skip("]"):
            return
        while True:
            yield self.record()
            if self.skip("]"):
                return
            if not self.skip(","):
                raise self.broken("is not followed by a comma or the end of the array")

    def require_end(self) -> None:
        """Raise `DataError` if there is more than white space."""
        if self.next_sign():
            raise self.broken("is followed by more after the end of the JSON")


def from_array(file: io.BufferedReader, prefix: str) -> Iterator[Record | Fault]:
    """A record from each item of the one array that the file is."""
    text = _Text(file, prefix)
    text.skip("[")
    yield from text.items()
    text.require_end()


def from_values(file: io.BufferedReader, prefix: str) -> Iterator[Record | Fault]:
    """A record from each value, one after the other, on any number of lines."""
    text = _Text(file, prefix)
    while text.next_sign():
        yield text.record()


def from_object(file: io.BufferedReader, prefix: str) -> Iterator[Record | Fault]:
    """A record from each item of the one array in the object that the file is; nothing else of the object is used."""
    text = _Text(file, prefix)
    text.skip("{")
    arrays = 0
    while text.next_sign() not in ("}", ""):
        text.value()
        if not text.skip(":"):
            raise text.broken("is followed by what is not JSON")
        if text.skip("["):
            arrays += 1
            if arrays > 1:
                raise DataError(
                    "The data file is an object with more than one array.",
                    "Give a file with one array of records.",
                    code="data_shape_invalid",
                )
            yield from text.items()
        else:
            text.value()
        if not text.skip(","):
            break
    if not text.skip("}"):
        raise text.broken("is followed by what is not JSON")
    text.require_end()
