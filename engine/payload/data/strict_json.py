"""JSON of a record, strictly and fast: the rules of `engine.wire.parse`, decoded by msgspec.

msgspec refuses all that `parse` refuses (bad UTF-8, unpaired surrogates, NaN, infinities, numbers that overflow) except
a key that an object has twice: it keeps the last one. A colon follows each key, so a text with as many colons as its
decoded value has keys repeats none. Only where a text has more, often inside a string, the standard library decodes it
again and looks at every pair.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from engine.errors import WireError
from engine.payload.data.records import Problem
from engine.wire import MAX_DEPTH, parse

_decode: Final = msgspec.json.Decoder().decode


class _Repeated(Exception):
    """An object has a key twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _Repeated
    return value


_decode_pairs: Final = json.JSONDecoder(object_pairs_hook=_once).decode


def decoded(raw: bytes) -> Any:
    """The value of a JSON text. Raises `Problem` (`data_json_invalid`, `data_not_utf8`)."""
    try:
        value = _decode(raw)
        keys = _keys(value, MAX_DEPTH)
        if raw.count(b":") != keys:
            _decode_pairs(raw.decode("utf-8"))
    except _Repeated:
        raise Problem("data_json_invalid", "has the same key twice in one object") from None
    except (ValueError, RecursionError):
        raise _why(raw) from None
    return value


def _keys(value: Any, depth: int) -> int:
    """How many keys the objects in a value have; raises `RecursionError` if it is nested deeper than `depth`."""
    kind = type(value)
    if kind is dict:
        inner, count = value.values(), len(value)
    elif kind is list:
        inner, count = value, 0
    else:
        return 0
    if not depth:
        raise RecursionError
    for each in inner:
        if type(each) is dict or type(each) is list:
            count += _keys(each, depth - 1)
    return count


def _why(raw: bytes) -> Problem:
    """Why a text is no JSON."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return Problem("data_not_utf8", "is not UTF-8")
    try:
        parse(raw)
    except WireError as error:
        if isinstance(error.__cause__, UnicodeEncodeError):
            return Problem("data_not_utf8", "has an unpaired surrogate in a string")
        if error.code == "json_too_deep":
            return Problem("data_json_invalid", "is nested more deeply than the limit, or is not JSON")
        if error.code == "json_not_finite":
            return Problem("data_json_invalid", "is not JSON: it has NaN, an infinity or a number that overflows")
    return Problem("data_json_invalid", "is not JSON")
