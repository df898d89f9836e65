"""Every format that `run --data` takes gives the ids and masks that transformers' own rendering gives."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load

from engine.payload.build import build_payload
from glasshouse_tui.commands.own_data import planned
from glasshouse_tui.commands.plan_options import RunOptions
from tests.functional.families.made import make_folder
from tests.functional.runs.rebuilt import encoded
from tests.needs import LOCAL_EXTRA

pytest.importorskip("torch", reason=LOCAL_EXTRA)
transformers = pytest.importorskip("transformers", reason=LOCAL_EXTRA)

pytestmark = pytest.mark.training

PAIRS = [("What is ice?", "Frozen water."), ("Name a colour.", "Blue, for example."), ("Say hi.", "Hi!")]
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}] for asked, answer in PAIRS
]
ALPACA = [
    {"instruction": "Add the numbers.", "input": "1 2", "output": "3"},
    {"instruction": "Say hi.", "input": "", "output": "Hi!"},
]
OF_ALPACA = [
    [{"role": "user", "content": "Add the numbers.\n\n1 2"}, {"role": "assistant", "content": "3"}],
    [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi!"}],
]


def lines(records: list[Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def as_chats(path: Path) -> Path:
    path.write_bytes(lines([{"messages": chat, "source": "mine"} for chat in CHATS]))
    return path


def as_pairs(path: Path) -> Path:
    path.write_bytes(lines([{"prompt": asked, "completion": answer} for asked, answer in PAIRS]))
    return path


def as_sharegpt(path: Path) -> Path:
    told = [[{"from": "human", "value": asked}, {"from": "gpt", "value": answer}] for asked, answer in PAIRS]
    path.write_bytes(lines([{"conversations": turns} for turns in told]))
    return path


def as_array(path: Path) -> Path:
    path.write_text(json.dumps([{"messages": chat} for chat in CHATS], indent=2))
    return path


def as_gzip(path: Path) -> Path:
    path.write_bytes(gzip.compress(lines([{"messages": chat} for chat in CHATS])))
    return path


def as_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        writer.writerows(PAIRS)
    return path


def as_parquet(path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="the parquet extra is missing: pip install -e '.[test]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": chat} for chat in CHATS]), path)
    return path


def as_folder(path: Path) -> Path:
    path.mkdir()
    for number, chat in enumerate(CHATS):
        (path / f"part-{number}.jsonl").write_bytes(lines([{"messages": chat}]))
    return path


def as_alpaca(path: Path) -> Path:
    path.write_bytes(lines(ALPACA))
    return path


FORMATS: dict[str, tuple[str, Callable[[Path], Path], list[list[dict[str, str]]]]] = {
    "OpenAI chat": ("a.jsonl", as_chats, CHATS),
    "prompt and completion": ("a.jsonl", as_pairs, CHATS),
    "ShareGPT": ("a.jsonl", as_sharegpt, CHATS),
    "Alpaca": ("a.jsonl", as_alpaca, OF_ALPACA),
    "JSON array": ("a.json", as_array, CHATS),
    "gzip": ("a.jsonl.gz", as_gzip, CHATS),
    "CSV": ("a.csv", as_csv, CHATS),
    "Parquet": ("a.parquet", as_parquet, CHATS),
    "folder": ("a", as_folder, CHATS),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder("llama", tmp_path_factory.mktemp("formats") / "model")


def built(data: Path, model: Path) -> tuple[dict[str, Any], Any]:
    """The tokens of the payload, and the plan's length, as `run` makes them from its options."""
    options = RunOptions(data=data, model=str(model), public_data=True, steps=1)
    with planned(options) as inputs:
        content = build_payload(inputs.plan, inputs.files).files["tokens.safetensors"]
    assert isinstance(content, bytes)
    return dict(load(content)), transformers.AutoTokenizer.from_pretrained(str(model))


@pytest.mark.parametrize("name", FORMATS)
def test_the_ids_and_masks_of_a_format_are_the_reference_renderers(name: str, model: Path, tmp_path: Path) -> None:
    file, write, chats = FORMATS[name]
    tokens, tokenizer = built(write(tmp_path / file), model)
    expected = [encoded(chat, tokenizer, tokens["input_ids"].shape[1]) for chat in chats]
    assert tokens["input_ids"].tolist() == [ids for ids, _ in expected]
    assert tokens["labels"].tolist() == [labels for _, labels in expected]
    assert (tokens["labels"] >= 0).any(axis=1).all()


def test_plain_text_is_learned_from_its_second_token_to_its_end(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"text": "Ice floats."}, {"text": "Snow is ice as well."}]))
    tokens, tokenizer = built(path, model)
    for row, labels, text in zip(
        tokens["input_ids"], tokens["labels"], ("Ice floats.", "Snow is ice as well."), strict=True
    ):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert row[: len(ids)].tolist() == ids
        assert labels[1 : len(ids)].tolist() == ids[1:]
        assert (labels[len(ids) :] == -100).all()
