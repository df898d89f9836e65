"""Every format as it is found in the wild, and the sample that it becomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.payload.data.read import read_data
from engine.payload.data.samples import Sample
from engine.system.resources import data_path
from tests.unit.payload.data.written import CHAT, PAIR, SAMPLE, chat, one, written

SYSTEM = {"role": "system", "content": "Be brief."}
WITH_SYSTEM = Sample(messages=(SYSTEM, *SAMPLE.messages), learned=(False, False, True))
HUMAN, GPT = {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}
SAME = {
    "OpenAI": CHAT,
    "parts of text": chat(("user", [{"type": "text", "text": "Hi?"}]), ("assistant", "Yes.")),
    "messages as JSON text": {"messages": json.dumps(CHAT["messages"])},
    "empty extras": {**CHAT, "tools": None, "functions": None, "prompt": None, "parallel_tool_calls": False},
    "ShareGPT": {"conversations": [HUMAN, GPT]},
    "ShareGPT, other speakers": {"conversations": [{**HUMAN, "from": "user"}, {**GPT, "from": "bing"}]},
    "ShareGPT with roles": {"conversations": CHAT["messages"]},
    "conversation": {"conversation": [HUMAN, GPT]},
    "prompt and completion": {"prompt": "Hi?", "completion": "Yes."},
    "conversational prompt and completion": {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]},
    "prompt and response": {"prompt": "Hi?", "response": "Yes."},
    "question and answer": {"question": "Hi?", "answer": "Yes."},
    "input and output": {"input": "Hi?", "output": "Yes."},
    "Alpaca": {"instruction": "Hi?", "input": "", "output": "Yes."},
    "Alpaca as published, with the rendered text": {
        "instruction": "Hi?",
        "input": "",
        "output": "Yes.",
        "text": "Below is an instruction that describes a task.",
    },
    "Dolly": {"instruction": "Hi?", "context": "", "response": "Yes.", "category": "open_qa"},
    "MetaMath": {"query": "Hi?", "response": "Yes.", "type": "GSM_Rephrased", "original_question": "Hi"},
    "FLAN": {"inputs": "Hi?", "targets": "Yes.", "task": "x"},
}  # fmt: skip


@pytest.mark.parametrize("record", SAME.values(), ids=SAME)
def test_one_question_with_its_answer_is_the_same_sample_in_every_format(tmp_path: Path, record: Any) -> None:
    assert one(tmp_path, record) == SAMPLE


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [SYSTEM, *CHAT["messages"]]},
        {"messages": [{**SYSTEM, "role": "developer"}, *CHAT["messages"]]},
        {"system": "Be brief.", **CHAT},
        {"system": "Be brief.", "conversations": [HUMAN, GPT]},
        {"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT]},
        {"system": "Be brief.", "prompt": "Hi?", "completion": "Yes."},
        {"id": "cot.1", "system_prompt": "Be brief.", "question": "Hi?", "response": "Yes."},
        {"system": "Be brief.", "instruction": "Hi?", "output": "Yes."},
        {"prompt": [SYSTEM, *CHAT["messages"][:1]], "completion": CHAT["messages"][1:]},
    ],
    ids=[
        "messages",
        "developer",
        "beside messages",
        "beside ShareGPT",
        "ShareGPT",
        "pair",
        "OpenOrca",
        "Alpaca",
        "TRL",
    ],
)
def test_a_system_prompt_comes_first_wherever_it_is_written(tmp_path: Path, record: Any) -> None:
    assert one(tmp_path, record) == WITH_SYSTEM


@pytest.mark.parametrize("key", ["input", "context"])
def test_an_instruction_and_its_input_are_joined_by_a_blank_line(tmp_path: Path, key: str) -> None:
    sample = one(tmp_path, {"instruction": "Translate.", key: "Bonjour", "output": "Hello"})
    assert sample.messages[0]["content"] == "Translate.\n\nBonjour"


def test_text_is_a_sample_of_its_own(tmp_path: Path) -> None:
    assert one(tmp_path, {"text": " Once upon a time\n", "meta": {"a": 1}}) == Sample(text=" Once upon a time\n")


def test_several_parts_of_text_are_lines(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    sample = one(tmp_path, {"messages": [{"role": "user", "content": parts}, CHAT["messages"][1]]})
    assert sample.messages[0]["content"] == "a\nb"


def test_an_answer_of_weight_0_is_not_learned(tmp_path: Path) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 1},
    ]
    sample = one(tmp_path, {"messages": turns})
    assert sample.learned == (False, False, False, True)
    assert all("weight" not in message for message in sample.messages)
    renamed = [
        {"from": "human" if turn["role"] == "user" else "gpt", "value": turn["content"], "weight": turn.get("weight")}
        for turn in turns
    ]
    assert one(tmp_path, {"conversations": renamed}) == sample


def test_of_a_conversational_prompt_no_answer_is_learned(tmp_path: Path) -> None:
    record = {
        "prompt": [*CHAT["messages"], {"role": "user", "content": "Why?"}],
        "completion": [{"role": "assistant", "content": "So."}],
    }
    assert one(tmp_path, record).learned == (False, False, False, True)
    assert one(tmp_path, {**record, "completion": "So."}).learned == (False, False, False, True)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}
CALLED = {"name": "get_current_weather", "arguments": {"location": "San Francisco, USA", "format": "celsius"}}
TOOL_CHAT: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "What is the weather in San Francisco?"},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "call_id",
                    "type": "function",
                    "function": {**CALLED, "arguments": json.dumps(CALLED["arguments"])},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_id", "content": "21.0"},
        {"role": "assistant", "content": "It is 21 degrees."},
    ],
    "parallel_tool_calls": False,
    "tools": [WEATHER],
}


def test_a_chat_with_tools_gets_the_arguments_as_an_object_as_templates_expect_them(tmp_path: Path) -> None:
    sample = one(tmp_path, TOOL_CHAT)
    assert sample.tools == (WEATHER,)
    assert sample.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_id", "type": "function", "function": CALLED}],
    }
    assert sample.messages[2] == {"role": "tool", "tool_call_id": "call_id", "content": "21.0"}
    assert sample.learned == (False, True, False, True)


def test_arguments_may_be_an_object_already_and_tools_json_text(tmp_path: Path) -> None:
    messages = [dict(message) for message in TOOL_CHAT["messages"]]
    messages[1]["tool_calls"] = [{"id": "call_id", "function": CALLED}]
    record = {"messages": messages, "tools": json.dumps([WEATHER["function"]])}
    assert one(tmp_path, record) == one(tmp_path, TOOL_CHAT)


def test_the_deprecated_functions_are_tools(tmp_path: Path) -> None:
    record = {
        "functions": [WEATHER["function"]],
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "function_call": {**CALLED, "arguments": "{}"}},
            {"role": "function", "name": "get_current_weather", "content": "21.0"},
            {"role": "assistant", "content": "21 degrees."},
        ],
    }
    sample = one(tmp_path, record)
    assert sample.tools == (WEATHER,)
    assert sample.messages[1]["tool_calls"] == [{"type": "function", "function": {**CALLED, "arguments": {}}}]
    assert sample.messages[2] == {"role": "tool", "name": "get_current_weather", "content": "21.0"}


def test_sharegpt_calls_functions_in_turns_of_their_own(tmp_path: Path) -> None:
    record = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": json.dumps(CALLED)},
            {"from": "observation", "value": "21.0"},
            {"from": "gpt", "value": "21 degrees."},
        ],
        "tools": json.dumps([WEATHER["function"]]),
    }
    sample = one(tmp_path, record)
    assert [message["role"] for message in sample.messages] == ["user", "assistant", "tool", "assistant"]
    assert sample.messages[1]["tool_calls"] == [{"type": "function", "function": CALLED}]
    assert sample.tools == (WEATHER,)


def test_a_tool_may_reply_with_nothing(tmp_path: Path) -> None:
    messages = [dict(message) for message in TOOL_CHAT["messages"]]
    messages[2]["content"] = ""
    assert one(tmp_path, {"messages": messages}).messages[2]["content"] == ""
    turns = [("human", "Go."), ("function_call", json.dumps(CALLED)), ("observation", ""), ("gpt", "Gone.")]
    record = {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}
    assert one(tmp_path, record).messages[2] == {"role": "tool", "content": ""}


def test_calls_may_be_text_as_hermes_has_them(tmp_path: Path) -> None:
    turns = [("human", "Go."), ("gpt", "<tool_call>{}</tool_call>"), ("tool", "a"), ("tool", "b"), ("gpt", "Gone.")]
    record = {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}
    assert [message["role"] for message in one(tmp_path, record).messages][2:4] == ["tool", "tool"]


def test_empty_lists_of_pictures_are_none(tmp_path: Path) -> None:
    turns = [{**message, "images": []} for message in CHAT["messages"]]
    assert one(tmp_path, {"messages": turns, "images": [], "audios": None}) == SAMPLE


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_one_name(tmp_path: Path, key: str) -> None:
    answer = {"role": "assistant", "content": "4", key: "2 and 2"}
    sample = one(tmp_path, {"messages": [{"role": "user", "content": "2+2?"}, answer]})
    assert sample.messages[1] == {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}


def test_other_keys_are_passed_over_and_counted(tmp_path: Path) -> None:
    turns = [{**message, "id": 1} for message in CHAT["messages"]]
    assert read_data(written(tmp_path, {**PAIR, "label": "good", "history": []})).ignored == {"label": 1}
    data = read_data(written(tmp_path, {"messages": turns, "source": "a"}, {**CHAT, "source": "b", "\x1b[2J": 0}))
    assert data.samples == (SAMPLE, SAMPLE)
    assert data.ignored == {"messages[].id": 2, "source": 2, "\\x1b[2J": 1}
    assert (data.duplicates, data.format) == (1, "OpenAI chats (messages)")


def test_different_keys_without_end_are_not_all_kept(tmp_path: Path) -> None:
    record = {"text": "a", **{f"key {number}": 1 for number in range(5000)}}
    assert len(read_data(written(tmp_path, record)).ignored) == 1000


def test_the_shipped_corpus_is_valid_and_without_repeats() -> None:
    data = read_data(data_path("sample_corpus.jsonl"))
    prompts = [tuple(message["content"] for message in sample.messages[:-1]) for sample in data.samples]
    assert len(prompts) >= 520
    assert len(set(prompts)) == len(prompts)
    assert data.duplicates == 0
