"""The shipped base's file: the pinned digest, its size, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.payload.build import build_payload
from engine.payload.folder import read_folder
from engine.payload.tiny import MAX_BYTES, shipped_base, shipped_weights
from engine.plan import preset
from engine.system.resources import data_path

SHIPPED = data_path("tiny_model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "tiny_model"))


def refused(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        shipped_weights(folder)
    assert caught.value.code == "tiny_model_damaged"
    assert caught.value.hint


def test_the_weights_are_those_that_the_record_pins() -> None:
    weights, digest = shipped_weights()
    base = shipped_base()
    assert weights == (SHIPPED / "model.safetensors").read_bytes()
    assert digest == hashlib.sha256(weights).hexdigest() == base.sha256
    assert len(weights) == base.bytes <= MAX_BYTES == 8 * 1024 * 1024


def test_the_payload_has_the_checked_weights_and_their_digest() -> None:
    payload = build_payload(preset("demo"))
    assert (payload.files["weights.safetensors"], payload.model_digest) == shipped_weights()


def test_they_are_complete_bfloat16_and_as_many_as_the_record_says() -> None:
    folder = read_folder(SHIPPED)
    assert {tensor.dtype for tensor in folder.tensors.values()} == {"BF16"}
    base = shipped_base()
    assert base.parameters == sum(math.prod(tensor.shape) for tensor in folder.tensors.values())
    assert json.loads((SHIPPED / "config.json").read_bytes())["dtype"] == "bfloat16"


@pytest.mark.parametrize("position", [0, 5000, -1])
def test_a_changed_byte_is_refused(folder: Path, position: int) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[position] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    refused(folder)


def test_weights_that_are_cut_absent_or_too_large_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder)
    path.write_bytes(b" " * (MAX_BYTES + 1))
    refused(folder)
    path.unlink()
    refused(folder)


@pytest.mark.parametrize(
    "record",
    [b"", b"{}", b"[" * 10_000, b'{"sha256": 5}', b" " * 100_000],
    ids=["empty", "no fields", "deep", "wrong type", "too large"],
)
def test_a_record_that_is_not_one_is_refused(folder: Path, record: bytes) -> None:
    (folder / "base.json").write_bytes(record)
    refused(folder)
