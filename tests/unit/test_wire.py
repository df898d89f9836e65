"""Canonical JSON, strict parsing, and the chain that detects every change of a log."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import WireError
from engine.wire import MAX_LINE_BYTES, ChainReader, ChainWriter, canonical, digest_of, parse, to_line

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def _log(count: int = 4) -> list[bytes]:
    writer = ChainWriter("run")
    return [to_line(writer.append("log", {"n": n}, ts=f"2026-01-01T00:00:0{n}.000Z")) for n in range(count)]


def _refusal(lines: list[bytes]) -> str:
    reader = ChainReader("run")
    with pytest.raises(WireError) as caught:
        for line in lines:
            reader.feed(line)
    return caught.value.code


@given(JSON)
def test_canonical_json_is_parsed_back_to_the_same_value(value: object) -> None:
    assert parse(canonical(value)) == value


def test_key_order_does_not_change_a_digest() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, {"a": -math.inf}, object(), "\ud800", {"\ud800": 1}, {"a": {"b\udfff": 1, "c": 2}}]
)
def test_values_without_canonical_json_are_refused(value: object) -> None:
    with pytest.raises(WireError) as caught:
        canonical(value)
    assert caught.value.code == "json_not_canonical"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b'{"a":1,"a":2}', "json_duplicate_key"),
        (b'{"a":NaN}', "json_not_finite"),
        (b"[Infinity]", "json_not_finite"),
        (b"[-1e999]", "json_not_finite"),
        (b"\xef\xbb\xbf{}", "json_invalid"),
        ("{}".encode("utf-16"), "json_invalid"),
        (b'"\xed\xa0\x80"', "json_invalid"),
        (b"1" * 5000, "json_invalid"),
        (rb'"\ud800"', "json_invalid"),
        (rb'{"a":["\uDFFF"]}', "json_invalid"),
        ('"\ud800"', "json_invalid"),
        (b"{", "json_invalid"),
        (b"\xff", "json_invalid"),
        (b"[" * 100_000, "json_too_deep"),
        (b"[" * 65 + b"]" * 65, "json_too_deep"),
        (b'{"a":' * 65 + b"0" + b"}" * 65, "json_too_deep"),
        (b"]" * 100_000, "json_invalid"),
        (b'"' + rb"\"" * 100_000, "json_invalid"),
        (b'"' + rb"\"" * 100_000 + b"[" * 100, "json_invalid"),
        (b"[" + b"[]," * 800_000 + b"[]]", "json_too_large"),
        (b"[" + b"0," * 2_000_000 + b"0]", "json_too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("json") else repr(value[:12]),
)
def test_loose_json_is_refused_with_its_code(text: bytes | str, code: str) -> None:
    with pytest.raises(WireError) as caught:
        parse(text)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 64 + b"]" * 64,
        b"[" + b"[]," * 1000 + b"[]]",
        b'"' + b"[" * 100_000 + b'"',
        rb'["\\","' + b"{" * 100 + rb"\"" + b"[" * 100 + b'"]',
    ],
    ids=range(4),
)
def test_brackets_count_as_depth_only_where_they_nest(text: bytes) -> None:
    assert parse(text) == json.loads(text)


def test_a_whole_pair_of_surrogates_is_one_character() -> None:
    assert parse(rb'"\ud83d\ude00"') == "\U0001f600"


def test_a_whole_log_is_accepted_and_its_head_is_the_writers() -> None:
    writer = ChainWriter("run")
    reader = ChainReader("run")
    for n in range(5):
        reader.feed(to_line(writer.append("log", {"n": n})))
    assert (reader.head, reader.next_seq) == (writer.head, 5)


def test_a_dropped_line_breaks_the_chain() -> None:
    lines = _log()
    assert _refusal([lines[0], lines[2]]) == "log_chain_broken"


def test_reordered_lines_break_the_chain() -> None:
    lines = _log()
    assert _refusal([lines[1], lines[0]]) == "log_chain_broken"


def test_a_doubled_line_breaks_the_chain() -> None:
    lines = _log()
    assert _refusal([lines[0], lines[0]]) == "log_chain_broken"


def test_an_edited_body_is_refused() -> None:
    assert _refusal([_log()[0].replace(b'"n":0', b'"n":9')]) == "log_hash_wrong"


def test_a_line_of_another_run_is_refused() -> None:
    assert _refusal([to_line(ChainWriter("other").append("log", {}))]) == "log_other_run"


def test_an_overlong_line_is_refused_before_it_is_parsed() -> None:
    assert _refusal([b"x" * (MAX_LINE_BYTES + 1)]) == "log_line_too_long"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_typed_errors(data: bytes) -> None:
    with pytest.raises(WireError):
        ChainReader("run").feed(data)


def test_a_reader_continues_where_another_stopped() -> None:
    lines = _log()
    first = ChainReader("run")
    for line in lines[:2]:
        first.feed(line)
    second = ChainReader("run", head=first.head, next_seq=first.next_seq)
    for line in lines[2:]:
        second.feed(line)
    assert second.next_seq == 4
