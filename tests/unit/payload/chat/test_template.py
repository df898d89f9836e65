from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DataError
from engine.payload.chat.encoder import ChatEncoder, EncoderSpec, encoder_spec
from engine.payload.chat.template import (
    CHATML,
    MAX_TEMPLATE_BYTES,
    Templates,
    given_template,
    templates_in,
    templates_of,
)
from engine.payload.data.samples import Sample
from engine.payload.shape import read_config
from engine.system.resources import data_path
from tests.unit.payload.chat.families import TOOL, chat, config_of, shown, spec_of, tokenizer_of


def config(template: Any) -> bytes:
    return json.dumps({"chat_template": template}).encode()


NAMED = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T{{ tools[0].function.name }}"}]


def test_the_template_of_the_configuration_is_a_text_or_named_texts() -> None:
    assert templates_of(config("A")).text(tools=True) == "A"
    named = templates_of(config(NAMED))
    assert (named.text(tools=False), named.text(tools=True)) == ("D", NAMED[1]["template"])
    assert named.source == "tokenizer_config.json"
    for none in (None, b"{}", config(None)):
        assert templates_of(none) == Templates()


def test_a_file_beside_the_tokenizer_comes_before_the_configuration(tmp_path: Path) -> None:
    assert templates_in(tmp_path, config("C")).text(tools=False) == "C"
    (tmp_path / "chat_template.jinja").write_text("F\r\n{# x #}\n")
    found = templates_in(tmp_path, config("C"))
    assert found.named == {"default": "F\n{# x #}\n"}
    assert found.source == "chat_template.jinja"


def test_more_templates_are_in_a_folder_beside_it(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("D")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    (tmp_path / "additional_chat_templates" / "notes.txt").write_text("no template")
    assert templates_in(tmp_path, config("C")).named == {"default": "D", "tool_use": "T"}


def test_a_file_that_is_given_comes_before_all(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("{{ messages[0].content }}!")
    shape = read_config(data_path("tiny_model", "config.json").read_bytes())[1]
    spec = encoder_spec(data_path("tiny_model", "tokenizer.json"), shape, None, tmp_path / "mine.txt")
    assert spec.templates == given_template(tmp_path / "mine.txt")
    made, _ = ChatEncoder(spec).encode([Sample(messages=chat("Hi").messages)])
    assert ChatEncoder(spec).decode(made.ids) == "Hi!"
    assert ChatEncoder(spec).template_source == "the file mine.txt"


def test_the_shipped_model_is_found_with_its_template() -> None:
    tokenizer = data_path("tiny_model", "tokenizer.json")
    shape = read_config(data_path("tiny_model", "config.json").read_bytes())[1]
    encoder = ChatEncoder(encoder_spec(tokenizer, shape, data_path("tiny_model", "tokenizer_config.json").read_bytes()))
    assert shown(encoder, chat("Hi", "Hello", "And?", "Bye")) == [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hello<|im_end|>", True),
        ("\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Bye<|im_end|>", True),
    ]
    assert (encoder.pad, encoder.template_source) == (0, "tokenizer_config.json")


def test_samples_with_tools_take_the_template_for_tools() -> None:
    encoder = ChatEncoder(spec_of("qwen2_5", chat_template=NAMED))
    plain = Sample(messages=chat("Hi").messages)
    with_tools = Sample(messages=chat("Hi").messages, tools=(TOOL,))
    made, _ = encoder.encode([plain, with_tools])
    assert [encoder.decode(made.sample(index)[0]) for index in (0, 1)] == ["D", "Tadd"]


def bare(name: str) -> EncoderSpec:
    return EncoderSpec(
        tokenizer=tokenizer_of(name), tokenizer_config=None, templates=Templates(), vocab=2048, eos=None, pad=None
    )


def test_without_a_template_a_tokenizer_for_chatml_gets_chatml() -> None:
    encoder = ChatEncoder(bare("qwen2_5"))
    assert shown(encoder, chat("Hi", "Hello")) == [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Hello<|im_end|>", True),
        ("\n", False),
    ]
    assert encoder.template_digest == Templates(named={"default": CHATML}).digest
    assert "ChatML" in encoder.template_source


def test_without_a_template_any_other_tokenizer_takes_plain_text_alone() -> None:
    # The shipped tokenizer has the ChatML tokens, so this one is made without them.
    document = json.loads(tokenizer_of("llama3"))
    document["added_tokens"] = [one for one in document["added_tokens"] if not one["content"].startswith("<|im_")]
    spec = EncoderSpec(
        tokenizer=json.dumps(document).encode(),
        tokenizer_config=None,
        templates=Templates(),
        vocab=2048,
        eos=None,
        pad=None,
    )
    encoder = ChatEncoder(spec)
    assert encoder.template_digest is None
    assert len(encoder.encode([Sample(text="Hi")])[0].ends) == 1
    with pytest.raises(DataError) as caught:
        encoder.encode([chat("Hi", "Hello")])
    assert caught.value.code == "chat_template_missing"
    assert "--chat-template FILE" in caught.value.hint


@pytest.mark.parametrize(
    "template",
    [1, {}, [1], [{"name": "default"}], [{"name": 1, "template": "x"}], [{"name": "rag", "template": "x"}], []],
)
def test_what_is_no_template_is_refused(template: Any) -> None:
    with pytest.raises(DataError) as caught:
        templates_of(config(template))
    assert caught.value.code == "chat_template_invalid"
    assert "--chat-template FILE" in caught.value.hint


@pytest.mark.parametrize("raw", [b"[]", b"{", b"\xff", b"[" * 100_000, b'"x"'])
def test_a_broken_configuration_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError) as caught:
        templates_of(raw)
    assert caught.value.code == "tokenizer_invalid"


def test_a_file_that_is_no_text_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"a" * (MAX_TEMPLATE_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "large", "binary", "folder", "missing"):
        with pytest.raises(DataError) as caught:
            given_template(tmp_path / name)
        assert caught.value.code == "chat_template_invalid"
    (tmp_path / "chat_template.jinja").symlink_to(tmp_path / "fifo")
    with pytest.raises(DataError):
        templates_in(tmp_path, None)


def test_many_templates_are_refused(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    for number in range(17):
        (tmp_path / "additional_chat_templates" / f"{number}.jinja").write_text("x")
    with pytest.raises(DataError, match="more than 16"):
        templates_in(tmp_path, None)


def test_the_digest_is_of_names_and_texts() -> None:
    digests = {
        Templates(named=named).digest
        for named in ({"default": "a"}, {"default": "b"}, {"tool_use": "a"}, {"default": "a", "tool_use": "a"})
    }
    assert len(digests) == 4
    assert ChatEncoder(spec_of("qwen3")).template_digest == templates_of(config_of("qwen3")).digest
