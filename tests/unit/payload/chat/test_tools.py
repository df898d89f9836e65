"""A template that leaves out calls of functions, or the functions, is refused for the sample."""

from __future__ import annotations

import pytest

from engine.payload.chat.encoder import ChatEncoder
from engine.payload.data.faults import HINTS
from engine.payload.data.samples import Fault, Sample
from tests.unit.payload.chat.families import TOOL, call, chat, encoder_of, message, sample, spec_of

CALLS = "The chat template does not write its tool calls."
TOOLS = "The chat template does not write its tools."
CALLED = sample(message("user", "Please add."), message("assistant", "", tool_calls=call(a=1)))
OFFERED = Sample(messages=chat("Please add.", "Hello").messages, learned=(False, True), tools=(TOOL,))
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def faults_of(encoder: ChatEncoder, one: Sample) -> list[Fault]:
    made, faults = encoder.encode([one])
    assert len(made.ends) + len(faults) == 1
    return [fault for _, fault in faults]


def custom(body: str, before: str = "") -> ChatEncoder:
    text = before + "{% for m in messages %}<|im_start|>{{ m.role }}\n" + body + "<|im_end|>\n{% endfor %}" + HEADER
    return ChatEncoder(spec_of("qwen2_5", chat_template=text))


@pytest.mark.parametrize("name", ["llama3", "phi3", "smollm3"])
def test_calls_and_tools_that_the_template_does_not_write_are_faults(name: str) -> None:
    for one, what in ((CALLED, CALLS), (OFFERED, TOOLS)):
        [fault] = faults_of(encoder_of(name), one)
        assert (fault.code, fault.what, fault.place) == ("chat_template_lacks_tools", what, "sample 1")
    assert "--chat-template" in HINTS["chat_template_lacks_tools"]
    assert faults_of(encoder_of(name), chat("Please add.", "Hello")) == []


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "mistral", "harmony"])
def test_calls_and_tools_that_the_template_writes_are_taken(name: str) -> None:
    assert faults_of(encoder_of(name), CALLED) == []
    assert faults_of(encoder_of(name), OFFERED) == []


def test_every_call_is_looked_for() -> None:
    two = sample(message("user", "Hi"), message("assistant", "", tool_calls=[*call(a=1), *call(a=2)]))
    first = "{{ m.content }}{{ m.tool_calls[0] | tojson if m.tool_calls }}"
    assert faults_of(custom(first), CALLED) == []
    assert [fault.what for fault in faults_of(custom(first), two)] == [CALLS]
    assert faults_of(custom(first.replace("[0]", "")), two) == []


def test_a_name_that_the_chat_has_elsewhere_is_not_the_call() -> None:
    known = "{{ tools | tojson if tools }}{{ 'function_1_ function_2_' }}"
    both = Sample(messages=CALLED.messages, learned=(False, True), tools=(TOOL,))
    assert [fault.what for fault in faults_of(custom("{{ m.content }}", known), both)] == [CALLS]


def test_names_that_need_an_escape_are_found() -> None:
    strange = {"type": "function", "function": {"name": 'é"\\', "arguments": {}}}
    one = sample(message("user", "Hi"), message("assistant", "", tool_calls=[strange]))
    assert faults_of(custom("{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"), one) == []


def test_a_template_that_knows_some_names_alone_is_taken_at_its_word() -> None:
    refusing = (
        "{% for c in m.tool_calls or [] %}{% if c.function.name != 'add' %}{{ raise_exception('No') }}{% endif %}"
    )
    assert faults_of(custom("{{ m.content }}" + refusing + "{{ c.function.name }}{% endfor %}"), CALLED) == []
    other = custom("{{ m.content | replace('add', '') }}" + refusing + "{% endfor %}")
    assert [fault.what for fault in faults_of(other, CALLED)] == [CALLS]


def test_reasoning_that_the_template_drops_is_no_fault() -> None:
    one = sample(message("user", "Hi"), message("assistant", "Hello", reasoning_content="They greet."))
    assert faults_of(encoder_of("llama3"), one) == []
