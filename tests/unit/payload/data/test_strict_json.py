"""The fast decoder accepts and refuses what `engine.wire.parse` does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import WireError
from engine.payload.data.records import Problem
from engine.payload.data.strict_json import decoded
from engine.wire import parse
from tests.fuzz.strategies import TRICKS

NUMBERS = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
PIECES = st.sampled_from(
    [b"{", b"}", b"[", b"]", b":", b",", b'"', b'"a"', b'"a:"', b"\\", b"1", b" ", b"\n", b"\xff", b"\\ud800", *TRICKS]
)
EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def outcome(read: Any, raw: bytes) -> Any:
    try:
        return repr(read(raw))
    except (Problem, WireError):
        return "refused"


@EXAMPLES
@given(value=JSON, escape=st.booleans(), indent=st.sampled_from([None, 1]))
def test_valid_json_has_the_same_value(value: Any, escape: bool, indent: int | None) -> None:
    raw = json.dumps(value, ensure_ascii=escape, indent=indent).encode("utf-8", "surrogatepass")
    assert outcome(decoded, raw) == outcome(parse, raw)


@EXAMPLES
@given(raw=st.lists(PIECES, max_size=12).map(b"".join))
def test_what_one_refuses_the_other_refuses(raw: bytes) -> None:
    assert outcome(decoded, raw) == outcome(parse, raw)


@EXAMPLES
@given(pairs=st.lists(st.tuples(st.sampled_from(["a", "a:", "b"]), JSON), max_size=4))
def test_a_key_is_never_lost(pairs: list[tuple[str, Any]]) -> None:
    raw = b"{" + b",".join(json.dumps(key).encode() + b":" + json.dumps(value).encode() for key, value in pairs) + b"}"
    if len({key for key, _ in pairs}) < len(pairs):
        with pytest.raises(Problem) as caught:
            decoded(raw)
        assert caught.value.code in ("data_json_invalid", "data_not_utf8")
    else:
        assert outcome(decoded, raw) == outcome(parse, raw)


@pytest.mark.parametrize("raw", [b'{"a":1,"\\u0061":2}', b'{"a":{"b":1,"b":2}}', b'[{"a":1,"a":1}]', b'{"":1,"":":"}'])
def test_a_key_that_is_there_twice_is_refused_however_it_is_written(raw: bytes) -> None:
    with pytest.raises(Problem, match="same key twice"):
        decoded(raw)
