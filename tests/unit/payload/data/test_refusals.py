"""What no record can mean, each with its place and its code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.payload.data.read import read_data
from engine.payload.data.records import MAX_RECORD_BYTES
from tests.unit.payload.data.test_formats import CALLED, TOOL_CHAT
from tests.unit.payload.data.written import CHAT, PAIR, chat, refusal, written

USER, ANSWER = CHAT["messages"]
SHAREGPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}


def answered(**keys: Any) -> dict[str, Any]:
    return {"messages": [USER, {**ANSWER, **keys}]}


def replied(*, call: Any = None, reply: Any = None) -> dict[str, Any]:
    messages = [dict(message) for message in TOOL_CHAT["messages"]]
    messages[1] = {**messages[1], **(call or {})}
    messages[2] = {**messages[2], **(reply or {})}
    return {"messages": messages}


def replied_twice(*, with_id: bool = True) -> dict[str, Any]:
    asked, called, reply, answer = TOOL_CHAT["messages"]
    if not with_id:
        reply = {"role": "tool", "content": "21.0"}
    return {"messages": [asked, called, reply, reply, answer]}


BROKEN = [
    (b"\xff{}", "data_not_utf8", "is not UTF-8"),
    (chat(("user", "a"), ("assistant", "\ud800")), "data_not_utf8", "surrogate"),
    (b"{not json", "data_json_invalid", "is not JSON"),
    (b'{"messages": [', "data_json_invalid", "is not JSON"),
    (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "data_json_invalid", "same key twice"),
    (b'{"messages": [{"role": "user", "role": "user", "content": "a:"}]}', "data_json_invalid", "same key twice"),
    (b'{"prompt": NaN, "completion": "c"}', "data_json_invalid", "NaN"),
    (b'{"prompt": "a", "completion": "c", "score": -Infinity}', "data_json_invalid", "infinity"),
    (b'{"prompt": "a", "completion": "c", "score": 1e999}', "data_json_invalid", "overflows"),
    (b"[" * 100_000, "data_json_invalid", "nested"),
    (b'{"text": ' + b"[" * 70 + b"]" * 70 + b"}", "data_json_invalid", "nested"),
    (b"[]", "data_shape_invalid", "not a JSON object"),
    (b'"text"', "data_shape_invalid", "not a JSON object"),
]
MEANINGLESS = [
    ({}, "data_format_unknown", "no keys"),
    ({"dialog": ["a"], "id": 1}, "data_format_unknown", "dialog, id"),
    ({"prompt": "a"}, "data_shape_invalid", "no answer"),
    ({"completion": "a"}, "data_shape_invalid", "no prompt"),
    ({"input": "a", "label": 1}, "data_shape_invalid", "no answer"),
    ({**PAIR, **CHAT}, "data_ambiguous", "completion, messages, prompt"),
    ({**SHAREGPT, **CHAT}, "data_ambiguous", "conversations, messages"),
    ({"question": "a", "answer": "b", "response": "c"}, "data_ambiguous", "answer, question, response"),
    ({"question": "a", "context": "b", "answer": "c"}, "data_ambiguous", "context"),
    ({"instruction": "a", "input": "b", "context": "c", "output": "d"}, "data_ambiguous", "input and context"),
    ({"instruction": "a", "history": [["b", "c"]], "output": "d"}, "data_shape_invalid", "history"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "data_preference", "chosen, rejected"),
    ({"chosen": CHAT["messages"], "rejected": CHAT["messages"]}, "data_preference", "chosen, rejected"),
    ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "data_preference", "preferred_output"),
    ({"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}, "data_preference", "completions"),
    ({**PAIR, "label": True}, "data_preference", "KTO"),
    ({"anchor": "a", "positive": "b"}, "data_embedding", "anchor, positive"),
    ({"sentence1": "a", "sentence2": "b", "label": 1}, "data_embedding", "sentence1"),
    ({"query": "a", "positive": "b", "negative": "c"}, "data_embedding", "negative, positive"),
    ({"text": "a", "label": 1}, "data_classification", "label, text"),
    ({"sentence": "a", "label": 1}, "data_classification", "label, sentence"),
    ({"input_ids": [1, 2], "labels": [1, 2]}, "data_tokenised", "input_ids"),
    ({"image": "a", "text": "b"}, "data_not_text", "image"),
    ({"text": ["a"]}, "data_shape_invalid", "text that is not text"),
    ({"text": " \n"}, "data_sample_empty", "empty text"),
    ({"prompt": 1, "completion": "a"}, "data_shape_invalid", "prompt that is not text"),
    ({"prompt": "a", "completion": ""}, "data_sample_empty", "empty completion"),
    ({"prompt": "a", "completion": " \n"}, "data_sample_empty", "empty completion"),
    ({"prompt": "", "completion": "a"}, "data_sample_empty", "empty prompt"),
    ({"prompt": {"role": "user"}, "completion": "a"}, "data_shape_invalid", "prompt that is not text"),
    ({"prompt": [], "completion": []}, "data_shape_invalid", "prompt that are not a non-empty list"),
    ({**CHAT, "system": 1}, "data_shape_invalid", "system that is not text"),
    ({"system": "a", **chat(("system", "b"), ("user", "c"), ("assistant", "d"))}, "data_ambiguous", "system prompt"),
    ({"messages": []}, "data_shape_invalid", "non-empty list"),
    ({"messages": {"role": "user"}}, "data_shape_invalid", "non-empty list"),
    ({"messages": "[{'role': 'user'}]"}, "data_json_invalid", "messages as text that is not JSON"),
    ({"messages": ["hello"]}, "data_shape_invalid", "messages[0], which is not an object"),
    ({"messages": [{"role": "user"}]}, "data_shape_invalid", "user content that is not text in messages[0]"),
    ({"messages": [{"content": "a"}]}, "data_shape_invalid", "role other than"),
    (chat(("user", "a"), ("robot", "b")), "data_shape_invalid", "role other than system, developer, user"),
    (chat(("user", "a"), (["assistant"], "b")), "data_shape_invalid", "role other than"),  # type: ignore[arg-type]
    (chat(("user", "a"), ("assistant", "")), "data_sample_empty", "empty assistant content in messages[1]"),
    (chat(("user", "a"), ("assistant", None)), "data_shape_invalid", "not text"),
    (chat(("user", "a"), ("assistant", [])), "data_sample_empty", "empty assistant content"),
    (chat(("user", "a")), "data_shape_invalid", "end with a message of the assistant"),
    (chat(("user", "a"), ("assistant", "b"), ("user", "c")), "data_shape_invalid", "end with a message of"),
    (chat(("assistant", "a")), "data_shape_invalid", "before any user"),
    (chat(("system", "s"), ("assistant", "a")), "data_shape_invalid", "before any user"),
    (chat(("user", "u"), ("system", "s"), ("assistant", "a")), "data_shape_invalid", "not the first"),
    (answered(weight=0), "data_nothing_learned", "weight of each one is 0"),
    (answered(weight=0.5), "data_shape_invalid", "weight other than 0 and 1"),
    (answered(weight="1"), "data_shape_invalid", "weight other than 0 and 1"),
    ({"messages": [{**USER, "weight": 1}, ANSWER]}, "data_shape_invalid", "weight"),
    (answered(refusal="No."), "data_not_text", "refusal"),
    (answered(audio={"id": "a"}), "data_not_text", "audio"),
    (answered(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "data_not_text", "image_url"),
    (answered(content=[{"type": "input_audio"}]), "data_not_text", "input_audio"),
    (answered(content=["a"]), "data_shape_invalid", "part"),
    (answered(content=[{"type": "text", "text": 1}]), "data_shape_invalid", "part"),
    (answered(content=[{"type": "text"}]), "data_shape_invalid", "part"),
    (answered(thinking="a", reasoning_content="b"), "data_ambiguous", "reasoning"),
    (answered(thinking=["a"]), "data_shape_invalid", "reasoning"),
    (answered(tool_calls={"a": 1}), "data_tool_call", "not a list"),
    (answered(tool_calls=[1]), "data_tool_call", "call of a function"),
    (answered(tool_calls=[{"type": "custom"}]), "data_tool_call", "call of a function"),
    (answered(tool_calls=[{"function": {}}]), "data_tool_call", "name its function"),
    (answered(tool_calls=[{"id": 1, "function": CALLED}]), "data_tool_call", "id that is not text"),
    (answered(tool_calls=[{"function": {**CALLED, "arguments": "[]"}}]), "data_tool_call", "not a JSON object"),
    (answered(tool_calls=[{"function": {**CALLED, "arguments": "{"}}]), "data_json_invalid", "arguments in tool_calls"),
    ({**CHAT, "tools": {}}, "data_tool_call", "not a list"),
    ({**CHAT, "tools": [{"type": "function"}]}, "data_tool_call", "function with a name"),
    ({**CHAT, "functions": ["{}"]}, "data_tool_call", "function with a name"),
    (replied(reply={"tool_call_id": "another"}), "data_tool_reply", "not before it"),
    (replied(call={"tool_calls": None, "content": "a"}), "data_tool_reply", "not before it"),
    (chat(("user", "a"), ("tool", "b"), ("assistant", "c")), "data_tool_reply", "not before it"),
    (replied_twice(), "data_tool_reply", "has its reply"),
    (replied_twice(with_id=False), "data_tool_reply", "has its reply"),
    (replied(reply={"tool_call_id": None, "name": "another"}), "data_tool_reply", "not before it"),
    (replied(reply={"tool_call_id": 1}), "data_shape_invalid", "tool_call_id that is not text"),
    (replied(reply={"content": None}), "data_shape_invalid", "tool content that is not text"),
    (replied(reply={"content": {"a": 1}}), "data_shape_invalid", "tool content that is not text"),
    ({"conversations": [{"from": "someone", "value": "a"}]}, "data_shape_invalid", "from other than"),
    ({"conversations": [{"value": "a"}]}, "data_shape_invalid", "from other than"),
    ({"conversations": [{"from": "human", "role": "user", "value": "a"}]}, "data_ambiguous", "role or content"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt"}]}, "data_shape_invalid", "not text"),
    ({"conversations": [{"from": "function_call", "value": "call it"}]}, "data_json_invalid", "function_call"),
    ({"conversations": [{"from": "gpt", "value": "a"}]}, "data_shape_invalid", "before any user"),
]  # fmt: skip


ALONE = [*(case for case in BROKEN if case[2] not in ("nested", "not a JSON object")), *MEANINGLESS]
"""Cases whose record may be the first; a file that begins with a bracket is an array."""


@pytest.mark.parametrize(("record", "code", "what"), ALONE, ids=[f"{what}-{n}" for n, (_, _, what) in enumerate(ALONE)])
def test_a_bad_record_is_reported_with_its_place(tmp_path: Path, record: Any, code: str, what: str) -> None:
    error = refusal(written(tmp_path, b"", record))
    assert (error.code, error.message.startswith("Line 2 of the data")) == (code, True), error.message
    assert what in error.message


@pytest.mark.parametrize(("record", "code", "what"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_record_after_a_good_one_says_as_what_the_file_is_read(
    tmp_path: Path, record: Any, code: str, what: str
) -> None:
    error = refusal(written(tmp_path, CHAT, record, CHAT))
    assert (error.code, what in error.message) == (code, True)
    assert error.message.startswith("Line 2 of the data, read as OpenAI chats (messages), ")


@pytest.mark.parametrize("other", [PAIR, SHAREGPT, {"text": "a"}, {"prompt": "a", "response": "b"}])
def test_a_file_of_two_formats_is_refused_at_the_records_that_differ(tmp_path: Path, other: Any) -> None:
    first, differing = (CHAT, other) if other != PAIR else (PAIR, CHAT)
    error = refusal(written(tmp_path, first, differing, first, differing))
    assert error.code == "data_format_mixed"
    assert error.message.startswith("2 records of the data, ")
    assert "line 2 is in the format" in error.message
    assert "line 4 is in the format" in error.message
    assert "line 3" not in error.message


def test_every_bad_record_is_counted_and_the_first_ten_are_shown(tmp_path: Path) -> None:
    bad = [{**PAIR, "completion": ""}, b"{"] * 20
    error = refusal(written(tmp_path, *[line for one in bad for line in (PAIR, one)]))
    assert error.message.startswith("40 records of the data, read as prompt and completion, cannot be used: ")
    assert error.message.endswith("; and 30 more.")
    assert "line 2 has an empty completion; line 4 is not JSON; line 6 has" in error.message
    assert ("line 20 " in error.message, "line 22 " in error.message) == (True, False)
    assert "Fill in the content" in error.hint
    assert "JSON library" in error.hint


def test_a_file_whose_first_record_is_bad_has_the_format_of_the_next(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, b"{", CHAT, PAIR))
    assert "read as OpenAI chats (messages)" in error.message
    assert "2 records" in error.message


def test_a_line_over_one_mebibyte_is_refused_and_the_next_ones_are_read(tmp_path: Path) -> None:
    fits = json.dumps({"prompt": "a", "completion": "x" * (MAX_RECORD_BYTES - 100)}).encode()
    assert len(read_data(written(tmp_path, fits)).samples) == 1
    error = refusal(written(tmp_path, CHAT, b"x" * (3 * MAX_RECORD_BYTES), b"{", b"x" * (MAX_RECORD_BYTES + 1)))
    assert error.code == "data_line_too_long"
    assert "line 2 is longer than 1 MiB; line 3 is not JSON; line 4 is longer" in error.message


def test_the_first_line_may_be_the_one_that_is_too_long(tmp_path: Path) -> None:
    long = json.dumps({"prompt": "a", "completion": "x" * 2 * MAX_RECORD_BYTES}).encode()
    assert refusal(written(tmp_path, long, PAIR)).message.startswith(
        "Line 1 of the data, read as prompt and completion"
    )


SECRET = "a secret"
HOSTILE = [
    {"prompt": SECRET, "completion": [SECRET]},
    {"messages": [{"role": SECRET, "content": SECRET}]},
    {"messages": SECRET},
    {"conversations": [{"from": SECRET, "value": SECRET}]},
    {**CHAT, "tools": SECRET},
    {"unknown": SECRET},
    b'{"a": "a secret" "b"}',
]


@pytest.mark.parametrize("record", HOSTILE, ids=range(len(HOSTILE)))
def test_no_content_of_the_data_is_in_an_error(tmp_path: Path, record: Any) -> None:
    error = refusal(written(tmp_path, record))
    assert SECRET not in error.message + error.hint + str(error.__cause__) + str(error.__context__)


def test_a_key_in_an_error_is_escaped_and_cut(tmp_path: Path) -> None:
    record = {"\x1b[2J\u202e": 1, "k" * 200: 1, **{f"x{number}": 1 for number in range(20)}}
    message = refusal(written(tmp_path, record)).message
    assert message.isprintable()
    assert "\\x1b[2J\\u202e, " + "k" * 40 + "..., x0" in message
    assert message.endswith("and 14 more).")


def test_tens_of_thousands_of_calls_and_replies_take_time_in_proportion(tmp_path: Path) -> None:
    calls = [{"id": str(number), "function": {"name": "f"}} for number in range(9000)]
    replies = [{"role": "tool", "tool_call_id": str(number), "content": ""} for number in reversed(range(9000))]
    record = {"messages": [USER, {"role": "assistant", "tool_calls": calls}, *replies, ANSWER]}
    assert len(read_data(written(tmp_path, record)).samples[0].messages) == 9003
    replies[-1]["tool_call_id"] = "x"
    assert refusal(written(tmp_path, record)).code == "data_tool_reply"
