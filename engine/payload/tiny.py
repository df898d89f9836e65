"""The shipped base: its weights, checked against the digest that `base.json` pins."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import DataError
from engine.system.files import read_named
from engine.system.resources import data_path

FOLDER: Final = "tiny_model"
MAX_BYTES: Final = 8 * 1024 * 1024
DTYPE: Final = "BF16"
_MAX_RECORD_BYTES: Final = 64 * 1024


class Base(msgspec.Struct, frozen=True, rename="camel"):
    """What `data/make_base.py` states about the weights; the losses are nats a token, by part of the chats.

    `tolerance`: how far the losses of a base that was trained again may be from these.
    """

    sha256: str
    bytes: int
    parameters: int
    steps: int
    seed: int
    held_out_loss: dict[str, float]
    tolerance: dict[str, float]


def _damaged(what: str) -> DataError:
    return DataError(f"The shipped model {what}.", "Install glasshouse again.", code="tiny_model_damaged")


def shipped_base(folder: Path | None = None) -> Base:
    """The record of the base in `folder`, by default the shipped one; raises `DataError` (`tiny_model_damaged`)."""
    try:
        path = (folder or data_path(FOLDER)) / "base.json"
        return msgspec.json.decode(read_named(path, _MAX_RECORD_BYTES), type=Base)
    except (OSError, msgspec.DecodeError) as error:
        raise _damaged("has a record that cannot be read") from error


def shipped_weights(folder: Path | None = None) -> tuple[bytes, str]:
    """The weight file (safetensors, bfloat16) and its SHA-256 in hex; raises `DataError` (`tiny_model_damaged`).

    The bytes that are packed are those that were checked.
    """
    try:
        weights = read_named((folder or data_path(FOLDER)) / "model.safetensors", MAX_BYTES)
    except OSError as error:
        raise _damaged("cannot be read") from error
    digest = hashlib.sha256(weights).hexdigest()
    if digest != shipped_base(folder).sha256:
        raise _damaged("is not the one that its record describes")
    return weights, digest
