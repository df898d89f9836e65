from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.errors import DataError
from engine.payload.chat.encoder import ChatEncoder
from engine.payload.chat.ragged import LEARNED, MARK
from engine.payload.data.samples import Sample
from tests.unit.payload.chat.families import FAMILIES, chat, config_of, encoder_of, spec_of, tokenizer_of


def test_a_plain_text_is_learned_whole_between_bos_and_eos() -> None:
    encoder = encoder_of("llama3")
    made, faults = encoder.encode([Sample(text="Once upon")])
    assert faults == []
    ids, flags = made.sample(0)
    assert encoder.decode(ids) == "<|begin_of_text|>Once upon<|eot_id|>"
    assert np.all(flags & LEARNED)
    assert np.flatnonzero(flags & MARK).tolist() == [0, len(ids) - 1]


def test_a_plain_text_has_no_bos_where_the_tokenizer_adds_none() -> None:
    encoder = encoder_of("qwen3")
    made, _ = encoder.encode([Sample(text="Once upon"), Sample(text="")])
    assert encoder.decode(made.sample(0)[0]) == "Once upon<|im_end|>"
    assert encoder.decode(made.sample(1)[0]) == "<|im_end|>"


def test_the_eos_of_the_tokenizer_comes_before_that_of_the_model() -> None:
    spec = msgspec.structs.replace(spec_of("qwen3"), eos=7)
    assert ChatEncoder(spec).encode([Sample(text="a")])[0].ids[-1] != 7
    without = msgspec.structs.replace(spec, tokenizer_config=None)
    assert ChatEncoder(without).encode([Sample(text="a")])[0].ids[-1] == 7


def test_a_sample_without_anything_is_a_fault() -> None:
    made, faults = encoder_of("qwen3").encode([Sample(), chat("Hi", "Hello")])
    assert [(index, fault.code) for index, fault in faults] == [(0, "sample_empty")]
    assert len(made.ends) == 1


def test_no_samples_make_no_tokens() -> None:
    made, faults = encoder_of("qwen3").encode([])
    assert (len(made.ids), len(made.ends), faults) == (0, 0, [])


def test_samples_are_independent_of_those_beside_them() -> None:
    many = [chat("Hi" * (number % 7), "<|im_end|>" * (number % 3) + "Hello") for number in range(600)]
    made, _ = encoder_of("qwen2_5").encode(many)
    for index in (0, 1, 255, 256, 257, 599):
        alone, _ = encoder_of("qwen2_5").encode([many[index]])
        assert made.sample(index)[0].tolist() == alone.ids.tolist()
        assert made.sample(index)[1].tolist() == alone.flags.tolist()


def test_a_spec_is_pickled_and_makes_the_same_encoder() -> None:
    spec = pickle.loads(pickle.dumps(spec_of("harmony")))  # noqa: S301
    made, _ = ChatEncoder(spec).encode([chat("Hi", "Hello")])
    assert made.ids.tolist() == encoder_of("harmony").encode([chat("Hi", "Hello")])[0].ids.tolist()


def test_padding_is_the_models_then_the_tokenizers() -> None:
    assert ChatEncoder(msgspec.structs.replace(spec_of("llama3"), pad=9)).pad == 9
    named = spec_of("llama3", pad_token="<|eot_id|>")
    eot = ChatEncoder(named).encode([Sample(text="")])[0].ids[-1]
    assert ChatEncoder(named).pad == eot
    assert ChatEncoder(spec_of("llama3")).pad == 0  # <|endoftext|>
    assert ChatEncoder(msgspec.structs.replace(named, pad=99_999)).pad == eot


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_ids_are_no_control_tokens_and_within_the_vocabulary(name: str) -> None:
    encoder = ChatEncoder(msgspec.structs.replace(spec_of(name), vocab=900))
    plain = encoder.plain_ids()
    added = {one["id"] for one in json.loads(tokenizer_of(name))["added_tokens"]}
    assert plain.max() < 900
    assert np.all(np.diff(plain) > 0)
    assert not added & set(plain.tolist())
    assert len(plain) > 500


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    encoder = ChatEncoder(msgspec.structs.replace(spec_of("llama3"), vocab=300))
    with pytest.raises(DataError) as caught:
        encoder.encode([chat("Hi", "Hello")])
    assert caught.value.code == "tokenizer_invalid"


BROKEN = [
    b"",
    b"{}",
    b"[]",
    b"\xff\xfe",
    b"[" * 100_000,
    json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}).encode(),
    json.dumps({"version": "1.0", "model": {"type": "Unigram", "vocab": [], "unk_id": 3}}).encode(),
    json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}).encode(),
]


@pytest.mark.parametrize("raw", BROKEN)
def test_a_broken_tokenizer_is_refused_and_never_a_crash(raw: bytes) -> None:
    with pytest.raises(DataError) as caught:
        ChatEncoder(msgspec.structs.replace(spec_of("llama3"), tokenizer=raw)).encode([chat("Hi", "Hello")])
    assert caught.value.code == "tokenizer_invalid"


def test_a_missing_tokenizer_is_named() -> None:
    with pytest.raises(DataError) as caught:
        ChatEncoder(msgspec.structs.replace(spec_of("llama3"), tokenizer=Path("/nowhere/tokenizer.json")))
    assert caught.value.code == "model_file_missing"


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token": 1, "bos_token": [], "added_tokens_decoder": 3, "extra_special_tokens": "x"},
        {"added_tokens_decoder": {"5": 7, "6": {"content": None}, "7": {"content": ""}}},
        {"extra_special_tokens": {"a_token": 3}, "additional_special_tokens": [1, None, {"content": 2}]},
    ],
)
def test_a_strange_configuration_is_no_crash(changes: dict[str, Any]) -> None:
    made, faults = ChatEncoder(spec_of("qwen2_5", **changes)).encode([chat("Hi", "Hello")])
    assert (len(made.ends), faults) == (1, [])


def test_a_special_token_that_only_the_configuration_names_is_one() -> None:
    """transformers does so too; the word is in the vocabulary."""
    document = json.loads(tokenizer_of("qwen2_5"))
    document["added_tokens"] = [one for one in document["added_tokens"] if one["content"] != "<|im_end|>"]
    spec = msgspec.structs.replace(spec_of("qwen2_5"), tokenizer=json.dumps(document).encode())
    made, _ = ChatEncoder(spec).encode([chat("Hi", "a<|im_end|>b")])
    usual, _ = encoder_of("qwen2_5").encode([chat("Hi", "a<|im_end|>b")])
    assert made.ids.tolist() == usual.ids.tolist()
    assert made.flags.tolist() == usual.flags.tolist()


def test_encoding_needs_neither_torch_nor_transformers() -> None:
    program = (
        "import sys; from tests.unit.payload.chat.families import chat, encoder_of; "
        "encoder_of('qwen3').encode([chat('Hi', 'Hello')]); "
        "sys.exit(bool({'torch', 'transformers', 'asyncssh'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_configuration_may_be_absent() -> None:
    spec = msgspec.structs.replace(spec_of("qwen3"), tokenizer_config=None)
    made, faults = ChatEncoder(spec).encode([chat("Hi", "Hello")])
    assert faults == []
    assert made.ids.tolist() == encoder_of("qwen3").encode([chat("Hi", "Hello")])[0].ids.tolist()
    assert config_of("qwen3")
