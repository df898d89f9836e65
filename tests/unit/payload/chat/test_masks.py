"""What is learned of a chat, by hand for each family: (text, learned), whose borders are those of tokens."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models

from engine.payload.chat.encoder import ChatEncoder, EncoderSpec
from engine.payload.chat.ragged import LEARNED, MARK
from engine.payload.chat.template import Templates
from engine.payload.data.samples import Sample
from tests.unit.payload.chat.families import call, chat, encoder_of, message, sample, shown, spec_of

Parts = list[tuple[str, bool]]
TWO = chat("Hi", "Hello", "And?", "Bye")
QWEN_SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
LLAMA_SYSTEM = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
)
HARMONY_SYSTEM = "<|start|>system<|message|>Knowledge cutoff: 2024-06\nCurrent date: 2024-07-26<|end|>"
EXPECTED: dict[str, Parts] = {
    "qwen2_5": [
        (QWEN_SYSTEM + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hello<|im_end|>", True),
        ("\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Bye<|im_end|>", True),
        ("\n", False),
    ],
    "qwen3": [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hello<|im_end|>", True),
        ("\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n", False),
        ("<think>\n\n</think>\n\nBye<|im_end|>", True),
        ("\n", False),
    ],
    "llama3": [
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", False),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
        ("Hello<|eot_id|>", True),
        ("<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>", False),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
        ("Bye<|eot_id|>", True),
    ],
    "llama3_1": [
        (LLAMA_SYSTEM + "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", False),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
        ("Hello<|eot_id|>", True),
        ("<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>", False),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", False),
        ("Bye<|eot_id|>", True),
    ],
    "mistral": [
        ("<s>[INST] Hi[/INST]", False),
        (" Hello</s>", True),
        ("[INST] And?[/INST]", False),
        (" Bye</s>", True),
    ],
    "gemma": [
        ("<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", False),
        ("Hello<end_of_turn>", True),
        ("\n<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n", False),
        ("Bye<end_of_turn>", True),
        ("\n", False),
    ],
    # These control tokens take the line break after them with them.
    "phi3": [
        ("<|user|>Hi<|end|><|assistant|>", False),
        ("Hello<|end|>", True),
        ("<|user|>And?<|end|><|assistant|>", False),
        ("Bye<|end|><|endoftext|>", True),
    ],
    "smollm3": [
        ("<|im_start|>system\nToday Date: 26 July 2024\nReasoning Mode: /think<|im_end|>\n", False),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hello<|im_end|>", True),
        ("\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Bye<|im_end|>", True),
        ("\n", False),
    ],
    "harmony": [
        (HARMONY_SYSTEM + "<|start|>user<|message|>Hi<|end|><|start|>assistant", False),
        ("<|channel|>final<|message|>Hello<|end|>", True),
        ("<|start|>user<|message|>And?<|end|><|start|>assistant", False),
        ("<|channel|>final<|message|>Bye<|return|>", True),
    ],
}
CALLED = (
    message("user", "Far?"),
    message("assistant", "", tool_calls=call(a=1)),
    message("tool", "3", tool_call_id="abcdefghi"),
    message("assistant", "It is 3."),
)


def joined(parts: Parts) -> Parts:
    """Parts as `show` gives them: neighbours differ."""
    made: Parts = []
    for text, learned in parts:
        if made and made[-1][1] == learned:
            made[-1] = (made[-1][0] + text, learned)
        else:
            made.append((text, learned))
    return made


def learned(name: str, one: Sample) -> list[str]:
    """The learned parts alone."""
    return [text for text, is_learned in shown(encoder_of(name), one) if is_learned]


def custom(text: str, name: str = "qwen2_5") -> ChatEncoder:
    spec = spec_of(name, chat_template=text)
    return ChatEncoder(spec)


@pytest.mark.parametrize("name", EXPECTED)
def test_answers_and_their_end_marks_are_learned(name: str) -> None:
    assert shown(encoder_of(name), TWO) == joined(EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_an_answer_with_weight_zero_is_not_learned(name: str) -> None:
    messages = chat("Hi", "Hello", "And?", "Bye").messages
    only_last = sample(*messages, learned=(False, False, False, True))
    wanted = [text for text, is_learned in joined(EXPECTED[name]) if is_learned]
    assert learned(name, only_last) == wanted[1:]
    only_first = sample(*messages, learned=(False, True, False, False))
    assert learned(name, only_first) == wanted[:1]
    assert learned(name, sample(*messages, learned=(False,) * 4)) == []


@pytest.mark.parametrize("name", EXPECTED)
def test_questions_are_not_learned_even_if_they_are_marked_so(name: str) -> None:
    one = sample(*TWO.messages, learned=(True, False, True, False))
    assert learned(name, one) == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "qwen2_5",
            ['<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>', "It is 3.<|im_end|>"],
        ),
        (
            "qwen3",
            [
                '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>',
                "<think>\n\n</think>\n\nIt is 3.<|im_end|>",
            ],
        ),
        ("llama3_1", ['{"name": "add", "parameters": {"a": 1}}<|eot_id|>', "It is 3.<|eot_id|>"]),
        (
            "mistral",
            ['[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "abcdefghi"}]</s>', " It is 3.</s>"],
        ),
        (
            "harmony",
            [
                ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>',
                "<|channel|>final<|message|>It is 3.<|return|>",
            ],
        ),
    ],
)
def test_calls_of_tools_are_learned_and_their_results_are_not(name: str, wanted: list[str]) -> None:
    assert learned(name, sample(*CALLED, tools=True)) == wanted


def test_tools_before_the_last_question_do_not_move_the_mask_of_earlier_answers() -> None:
    one = sample(*CALLED, message("user", "Far?"), message("assistant", "Still 3."), tools=True)
    assert learned("mistral", one)[1:] == [" It is 3.</s>", " Still 3.</s>"]


def test_reasoning_that_the_template_drops_from_earlier_answers_is_not_learned() -> None:
    one = sample(
        message("user", "Hi"),
        message("assistant", "Hello", reasoning_content="They greet."),
        message("user", "And?"),
        message("assistant", "<think>\nThey go.\n</think>\n\nBye"),
    )
    assert learned("qwen3", one) == ["Hello<|im_end|>", "<think>\nThey go.\n</think>\n\nBye<|im_end|>"]
    assert learned("harmony", one)[0] == "<|channel|>final<|message|>Hello<|end|>"


def test_reasoning_before_a_call_is_learned_where_the_template_keeps_it() -> None:
    messages = (CALLED[0], message("assistant", "", reasoning_content="I add.", tool_calls=call(a=1)), *CALLED[2:])
    first, last = learned("qwen3", sample(*messages, tools=True))
    assert first.startswith("<think>\nI add.\n</think>\n\n<tool_call>")
    assert last == "<think>\n\n</think>\n\nIt is 3.<|im_end|>"
    more = (message("user", "And?"), message("assistant", "Four."))
    assert learned("qwen3", sample(*messages, *more, tools=True))[0].startswith("<tool_call>")


def test_a_think_block_of_the_header_is_not_learned() -> None:
    one = sample(message("system", "/no_think"), message("user", "Hi"), message("assistant", "Hello"))
    prompt, answer, _ = shown(encoder_of("smollm3"), one)
    assert prompt[0].endswith("<|im_start|>assistant\n<think>\n\n</think>\n")
    assert answer == ("Hello<|im_end|>", True)
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    parts = shown(custom(template), chat("Hi", "Hello", "And?", "<think>\nWell\n</think>\nBye"))
    assert [text for text, is_learned in parts if is_learned] == ["Hello<|im_end|>", "Well\n</think>\nBye<|im_end|>"]


def test_a_chat_may_begin_with_an_answer() -> None:
    one = sample(message("assistant", "Welcome"), message("user", "Hi"), message("assistant", "Hello"))
    assert learned("llama3", one) == ["Welcome<|eot_id|>", "Hello<|eot_id|>"]


def test_a_chat_may_end_with_a_question() -> None:
    assert learned("qwen3", chat("Hi", "Hello", "And?")) == ["Hello<|im_end|>"]
    assert learned("phi3", chat("Hi", "Hello", "And?")) == ["Hello<|end|>"]


MACRO = (
    "{% macro all(list) %}{% for m in list %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% endmacro %}{{ all(messages) }}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_template_whose_loop_is_in_a_macro_is_rendered_step_by_step() -> None:
    parts = shown(custom(MACRO), TWO)
    assert [text for text, is_learned in parts if is_learned] == ["Hello<|im_end|>", "Bye<|im_end|>"]


def test_a_template_that_counts_its_messages_is_rendered_step_by_step() -> None:
    template = (
        "{% for i in range(messages | length) %}"
        "{{ '<|im_start|>' + messages[i].role + '\n' + messages[i].content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    parts = shown(custom(template), TWO)
    assert [text for text, is_learned in parts if is_learned] == ["Hello<|im_end|>", "Bye<|im_end|>"]


def test_a_template_that_shows_no_answer_is_refused_for_the_sample() -> None:
    template = "{% macro all() %}{{ messages | map(attribute='content') | join('|') }}{% endmacro %}{{ all() | upper }}"
    reversed_order = (
        "{% for m in messages[::-1] %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    )
    for text in (template + "{{ messages | length }}", reversed_order):
        made, faults = custom(text).encode([TWO])
        assert len(made.ends) == 0
        assert [(index, fault.code) for index, fault in faults] == [(0, "chat_template_unmasked")]


PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
ASKED = "{% if m.role == 'user' %}" + TURN + "{% endif %}"


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}" + ASKED + "{% endfor %}",
        "{% for m in messages %}" + ASKED + "{% endfor %}" + PROMPT,
        "{% macro all(list) %}{% for m in list %}" + ASKED + "{% endfor %}{% endmacro %}{{ all(messages) }}",
        "{% for m in messages %}" + ASKED + "{% generation %}{% endgeneration %}{% endfor %}",
    ],
    ids=["loop", "loop with a prompt", "macro", "generation"],
)
def test_a_template_that_leaves_out_the_answers_is_refused_for_the_sample(text: str) -> None:
    for one in (TWO, chat("Hi", "Hello")):
        made, faults = custom(text).encode([one])
        assert len(made.ends) == 0
        assert [fault.code for _, fault in faults] == ["chat_template_unmasked"]


@pytest.mark.parametrize("order", ["messages | reverse", "messages[::-1]", "messages | sort(attribute='role')"])
def test_a_template_that_does_not_write_the_last_message_last_is_refused_for_the_sample(order: str) -> None:
    text = "{% for m in " + order + " %}" + TURN + "{% endfor %}" + PROMPT
    made, faults = custom(text).encode([TWO])
    assert len(made.ends) == 0
    assert [fault.code for _, fault in faults] == ["chat_template_unmasked"]


RESULT_INSIDE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"
    "{% if loop.nextitem and loop.nextitem.role == 'tool' %}{{ ' -> ' + loop.nextitem.content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_what_a_tool_answers_is_not_learned_where_the_template_writes_it_into_the_call() -> None:
    made, faults = custom(RESULT_INSIDE).encode([sample(*CALLED)])
    assert len(made.ends) == 0
    assert [fault.code for _, fault in faults] == ["chat_template_unmasked"]
    after = RESULT_INSIDE.replace("{{ '<|im_end|>\n' }}{% endfor %}", "{% endfor %}").replace(
        "{% if loop.nextitem and", "{{ '<|im_end|>\n' }}{% if loop.nextitem and"
    )
    texts = [text for text, is_learned in shown(custom(after), sample(*CALLED)) if is_learned]
    assert [text.endswith("<|im_end|>") and " -> 3" not in text for text in texts] == [True, True]


def test_marked_parts_are_those_of_the_answers_that_are_learned() -> None:
    body = "{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        + body
        + "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    )
    encoder = custom(template)
    only_last = sample(*TWO.messages, learned=(False, False, False, True))
    assert [text for text, is_learned in shown(encoder, only_last) if is_learned] == ["Bye<|im_end|>\n"]
    assert [text for text, is_learned in shown(encoder, TWO) if is_learned] == ["Hello<|im_end|>\n", "Bye<|im_end|>\n"]


def test_a_token_across_the_border_is_learned_only_if_it_starts_inside() -> None:
    encoder = custom(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    joined_word = encoder.encode([chat("th", "e cat")])[0].sample(0)
    assert encoder.show(*joined_word)[0][1] is False
    assert encoder.decode(joined_word[0].tolist()) == "the cat"
    starts = [text for text, is_learned in encoder.show(*joined_word) if is_learned]
    assert "".join(starts) in ("e cat", " cat")


def test_control_tokens_of_the_template_are_marked() -> None:
    made, _ = encoder_of("llama3").encode([chat("Hi", "Hello")])
    ids, flags = made.sample(0)
    marked = [encoder_of("llama3").decode([token]) for token, flag in zip(ids, flags, strict=True) if flag & MARK]
    assert marked == [
        "<|begin_of_text|>",
        *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ]
    assert flags[-1] == MARK | LEARNED


def test_a_character_of_several_tokens_is_learned_whole() -> None:
    assert learned("llama3", chat("🦜", "🦜🏔")) == ["🦜🏔<|eot_id|>"]


def test_a_space_at_the_end_of_the_header_is_not_learned() -> None:
    """The tokenizer itself leaves spaces out of its offsets, so that this one would begin inside the answer."""
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    parts = shown(custom(template, "llama3"), chat("1", "2"))
    assert parts == [("user: 1<|eot_id|>assistant: ", False), ("2<|eot_id|>", True)]


def test_what_the_vocabulary_lacks_is_no_control_token() -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", vocab={"<unk>": 0, "a": 1}, merges=[]))
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    spec = EncoderSpec(
        tokenizer=tokenizer.to_str().encode(),
        tokenizer_config=b"{}",
        templates=Templates(named={"default": "{% for m in messages %}{{ '<s>' + m.content }}{% endfor %}"}),
        vocab=8,
        eos=None,
        pad=None,
    )
    made, _ = ChatEncoder(spec).encode([chat("aba", "a")])
    assert made.ids.tolist() == [2, 1, 0, 1, 2, 1]
    assert (made.flags & MARK).tolist() == [MARK, 0, 0, 0, MARK, 0]
