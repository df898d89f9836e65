from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DataError
from engine.payload.samples import MAX_LINE_BYTES, Message, Sample, read_data
from engine.system.resources import data_path

CHAT = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]}
PAIR = {"prompt": "Hi?", "completion": "Yes."}


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"
    )
    return path


def refusal(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_data(path)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


def test_a_chat_and_a_prompt_with_its_completion_are_the_same_sample(tmp_path: Path) -> None:
    first, second = read_data(written(tmp_path, CHAT, PAIR)).samples
    assert first == second == Sample((Message("user", "Hi?"), Message("assistant", "Yes.")))


def test_blank_lines_a_missing_last_newline_and_a_byte_order_mark_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(CHAT).encode() + b"\n\n  \r\n" + json.dumps(PAIR).encode())
    assert len(read_data(path).samples) == 2


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, CHAT, b"", PAIR)
    assert read_data(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("line", "code", "what"),
    [
        (b"\xff\xfe{}", "data_not_utf8", "not UTF-8"),
        ({"prompt": "a", "completion": "\ud800"}, "data_not_utf8", "surrogate"),
        (b"{not json", "data_json_invalid", "not JSON"),
        (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "data_json_invalid", "repeats a key"),
        (b'{"prompt": NaN, "completion": "c"}', "data_json_invalid", "not JSON"),
        (b"[" * 100_000, "data_json_invalid", "not JSON"),
        (b"[]", "data_shape_invalid", "neither"),
        ({}, "data_shape_invalid", "neither"),
        ({"prompt": "a"}, "data_shape_invalid", "neither"),
        ({**PAIR, "id": 1}, "data_shape_invalid", "neither"),
        ({**PAIR, **CHAT}, "data_shape_invalid", "neither"),
        ({"prompt": 1, "completion": "a"}, "data_shape_invalid", "not text"),
        ({"prompt": "a", "completion": ""}, "data_sample_empty", "empty completion"),
        ({"prompt": "a", "completion": " \n"}, "data_sample_empty", "empty completion"),
        ({"prompt": "", "completion": "a"}, "data_sample_empty", "empty prompt"),
        ({"messages": []}, "data_shape_invalid", "non-empty list"),
        ({"messages": "hello"}, "data_shape_invalid", "non-empty list"),
        ({"messages": ["hello"]}, "data_shape_invalid", "exactly role and content"),
        ({"messages": [{"role": "user"}]}, "data_shape_invalid", "exactly role and content"),
        (chat(("user", "a"), ("robot", "b")), "data_shape_invalid", "role"),
        (chat(("user", "a"), ("assistant", "")), "data_sample_empty", "empty assistant content"),
        (chat(("user", "a"), ("assistant", None)), "data_shape_invalid", "not text"),
        (chat(("user", "a")), "data_shape_invalid", "end with a message of the assistant"),
        (chat(("assistant", "a")), "data_shape_invalid", "before any user"),
        (chat(("system", "s"), ("assistant", "a")), "data_shape_invalid", "before any user"),
        (chat(("user", "u"), ("system", "s"), ("assistant", "a")), "data_shape_invalid", "system"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_line_is_reported_with_its_number(tmp_path: Path, line: Any, code: str, what: str) -> None:
    error = refusal(written(tmp_path, CHAT, b"", line, PAIR))
    assert error.code == code
    assert error.message.startswith("Line 3 of the data file ")
    assert what in error.message


def test_a_line_over_one_mebibyte_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    fits = json.dumps({"prompt": "a", "completion": "x" * (MAX_LINE_BYTES - 100)}).encode()
    assert len(read_data(written(tmp_path, fits)).samples) == 1
    error = refusal(written(tmp_path, CHAT, b"x" * (MAX_LINE_BYTES + 1)))
    assert (error.code, "Line 2" in error.message) == ("data_line_too_long", True)


def test_a_missing_an_unreadable_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.jsonl").code == "data_missing"
    assert refusal(tmp_path).code == "data_unreadable"
    assert refusal(written(tmp_path, b"", b" ")).code == "data_empty"


def test_no_content_of_the_data_is_in_an_error(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, {"prompt": "the secret", "completion": "the secret", "secret": "the secret"}))
    assert "secret" not in error.message + error.hint


def test_the_shipped_corpus_is_valid_and_without_repeats() -> None:
    data = read_data(data_path("sample_corpus.jsonl"))
    prompts = [tuple(message.content for message in sample.messages[:-1]) for sample in data.samples]
    assert len(prompts) >= 520
    assert len(set(prompts)) == len(prompts)
