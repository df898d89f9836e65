"""Inputs for the fuzz targets: bytes, JSON with unusual and hostile content, and valid inputs with changes."""

from __future__ import annotations

import json
from typing import Any, Final

from hypothesis import strategies as st

from engine.errors import WireError
from engine.wire import parse

# Pieces of JSON text that parsers often mishandle.
TRICKS: Final = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b"1E-400",
    b"-0.0",
    b"0",
    b"-1",
    b"1.0",
    b"true",
    b"null",
    b'""',
    b"[]",
    b"{}",
    b"9007199254740993",
    b"9223372036854775808",
    b"-9223372036854775809",
    b"1" + b"0" * 400,
    b"9" * 5000,
    b'"\\ud800"',
    b'{"\\udfff":1}',
    b'"\\u0000"',
    b'{"a":1,"a":2}',
    b"[" * 1100 + b"]" * 1100,
    b'{"a":' * 1100,
    b'"' + b"a" * 70_000 + b'"',
    b'"\xff\xfe"',
    b'"\xed\xa0\x80"',
    b"\xef\xbb\xbf",
    b'"../../etc/passwd"',
    b'"\\u202e"',
    b'"2026-05-17T12:00:00Z"',
    b'"9999-99-99"',
    b'"0001-01-01T00:00:00"',
    b'"' + b"A" * 64 + b'"',
    b"[[0,0],[1]]",
)

_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every node below `value`."""
    paths = [path] if path else []
    if isinstance(value, dict):
        return paths + [below for key in value for below in _places(value[key], (*path, key))]
    if isinstance(value, list):
        return paths + [below for index in range(len(value)) for below in _places(value[index], (*path, index))]
    return paths


_MARK: Final = "\u2603 here \u2603"


@st.composite
def edited(draw: st.DrawFn, seed: bytes) -> bytes:
    """The seed with a node of its JSON replaced or removed, or with a key added; the text stays canonical."""
    value = parse(seed)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(value)
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        parent = value
        for step in above:
            parent = parent[step]
        action = draw(st.sampled_from(("exchange", "exchange", "exchange", "remove", "add")))
        if action == "remove" and isinstance(parent, dict):
            del parent[last]
        elif action == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = draw(values)
        else:
            parent[last] = draw(values)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")


@st.composite
def tricked(draw: st.DrawFn, seed: bytes) -> bytes:
    """The seed with one node replaced by a piece of text that need not be JSON."""
    value = parse(seed)
    places = _places(value)
    if not places:
        return draw(st.sampled_from(TRICKS))
    *above, last = draw(st.sampled_from(places))
    parent = value
    for step in above:
        parent = parent[step]
    parent[last] = _MARK
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return text.replace(json.dumps(_MARK, ensure_ascii=False).encode(), draw(st.sampled_from(TRICKS)))


@st.composite
def cut_and_pasted(draw: st.DrawFn, seed: bytes) -> bytes:
    """The seed with bytes flipped, removed, duplicated or inserted."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        span = draw(st.integers(0, 40))
        action = draw(st.sampled_from(("flip", "cut", "double", "insert", "trick")))
        if action == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut":
            del data[at : at + span]
        elif action == "double":
            data[at:at] = data[at : at + span]
        elif action == "trick":
            data[at:at] = draw(st.sampled_from(TRICKS))
        else:
            data[at:at] = draw(st.binary(max_size=20))
    return bytes(data)


def inputs(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Arbitrary inputs for a target with these seeds."""
    strategies: list[st.SearchStrategy[bytes]] = [
        st.binary(max_size=300),
        st.sampled_from(TRICKS),
        values.map(lambda value: json.dumps(value).encode()),
    ]
    for seed in seeds:
        strategies += [cut_and_pasted(seed)] * 2
        try:
            parse(seed)
        except WireError:
            continue
        strategies += [edited(seed), tricked(seed)] * 2
    return st.one_of(strategies)
