"""Small models of the families that people train: a tokenizer like theirs, and a template that behaves like theirs."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from engine.payload.chat.encoder import ChatEncoder, EncoderSpec
from engine.payload.chat.template import templates_of
from engine.payload.data.samples import Sample
from engine.system.resources import data_path

TEMPLATES: Final = Path(__file__).parent / "templates"
VOCABULARY: Final = 2048
TOOL: Final = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds & compares <numbers>.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "unit": {"type": "string", "enum": ["m", "km"]}},
            "required": ["a"],
        },
    },
}


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """`special` are control tokens, `added` other tokens that are never split; `pieces`: whose SentencePiece."""

    name: str
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    bos: str | None = None
    eos: str = "<|im_end|>"
    tokenizer_class: str = "PreTrainedTokenizerFast"
    model_type: str = "llama"
    pieces: str = ""
    strips: tuple[str, ...] = ()


NAMED: Final = ("<unk>", "<s>", "</s>", "<pad>", "<bos>", "<eos>", "<mask>")
CHATML: Final = ("<|im_start|>", "<|im_end|>")
HEADERS: Final = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TOOL_MARKS: Final = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
FAMILIES: Final = {
    family.name: family
    for family in (
        Family(name="qwen2_5", special=CHATML, added=("<tool_call>", "</tool_call>"), tokenizer_class="Qwen2Tokenizer"),
        Family(
            name="qwen3",
            special=CHATML,
            added=("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
            tokenizer_class="Qwen2Tokenizer",
            model_type="qwen3",
        ),
        Family(name="llama3", special=HEADERS, bos=HEADERS[0], eos=HEADERS[3]),
        Family(name="llama3_1", special=HEADERS, bos=HEADERS[0], eos=HEADERS[3]),
        Family(
            name="mistral",
            special=("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", *TOOL_MARKS),
            bos="<s>",
            eos="</s>",
            tokenizer_class="LlamaTokenizer",
            pieces="llama",
        ),
        Family(
            name="gemma",
            special=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
            bos="<bos>",
            eos="<eos>",
            tokenizer_class="GemmaTokenizer",
            model_type="gemma",
            pieces="gemma",
        ),
        Family(
            name="phi3",
            special=("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
            bos="<s>",
            eos="<|endoftext|>",
            strips=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
            pieces="llama",
        ),
        Family(name="smollm3", special=CHATML, added=("<think>", "</think>")),
        Family(
            name="harmony",
            special=("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"),
            eos="<|return|>",
        ),
    )
}


def message(role: str, content: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(**arguments: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": arguments}}]


def sample(*messages: Mapping[str, Any], learned: tuple[bool, ...] | None = None, tools: bool = False) -> Sample:
    """A chat whose answers are all learned, or as `learned` says of every message."""
    answers = tuple(one["role"] == "assistant" for one in messages)
    return Sample(messages=messages, learned=answers if learned is None else learned, tools=(TOOL,) if tools else ())


def chat(*turns: str) -> Sample:
    """Questions and answers in turn."""
    return sample(*(message(("user", "assistant")[place % 2], turn) for place, turn in enumerate(turns)))


@functools.cache
def tokenizer_of(name: str) -> bytes:
    """The tokenizer.json of a family."""
    family = FAMILIES[name]
    tokenizer = (
        _pieces(family) if family.pieces else Tokenizer.from_file(str(data_path("tiny_model", "tokenizer.json")))
    )
    added = [AddedToken(text, special=True, rstrip=text in family.strips, normalized=False) for text in family.special]
    tokenizer.add_special_tokens(added)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.added])
    if family.bos is not None:
        begin = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, tokenizer.token_to_id(family.bos))]
        )
        trim = processors.ByteLevel(trim_offsets=True)
        tokenizer.post_processor = begin if family.pieces else processors.Sequence([trim, begin])
    return tokenizer.to_str().encode()


def _pieces(family: Family) -> Tokenizer:
    """Byte-pair encoding over pieces in which a space is a visible mark, as SentencePiece makes them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if family.pieces == "llama":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        show_progress=False,
        special_tokens=[
            "<unk>",
            "<s>",
            "</s>",
            "<pad>",
            "<bos>",
            "<eos>",
            "<mask>",
            *(f"<0x{byte:02X}>" for byte in range(256)),
        ],
        max_token_length=16,
    )
    lines = data_path("sample_corpus.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer.train_from_iterator([turn["content"] for line in lines for turn in json.loads(line)["messages"]], trainer)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [one for one in document["added_tokens"] if not one["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(document))


def config_of(name: str, **changes: Any) -> bytes:
    """The tokenizer_config.json of a family."""
    family = FAMILIES[name]
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    config = {
        "tokenizer_class": family.tokenizer_class,
        "bos_token": family.bos,
        "eos_token": {"content": family.eos, "__type": "AddedToken", "lstrip": False, "normalized": False},
        "pad_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    return json.dumps(config | changes).encode()


def spec_of(name: str, **changes: Any) -> EncoderSpec:
    config = config_of(name, **changes)
    return EncoderSpec(
        tokenizer=tokenizer_of(name),
        tokenizer_config=config,
        templates=templates_of(config),
        vocab=VOCABULARY,
        eos=None,
        pad=None,
    )


@functools.cache
def encoder_of(name: str) -> ChatEncoder:
    return ChatEncoder(spec_of(name))


def folder_of(name: str, folder: Path) -> Path:
    """A folder from which transformers loads the family's tokenizer."""
    (folder / "tokenizer.json").write_bytes(tokenizer_of(name))
    (folder / "tokenizer_config.json").write_bytes(config_of(name))
    (folder / "config.json").write_text(json.dumps({"model_type": FAMILIES[name].model_type}), encoding="utf-8")
    return folder


def shown(encoder: ChatEncoder, one: Sample) -> list[tuple[str, bool]]:
    """The text of a sample in parts that are learned or not."""
    made, faults = encoder.encode([one])
    assert faults == []
    return encoder.show(*made.sample(0))
