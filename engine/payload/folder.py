"""A local model folder: config.json, tokenizer.json and safetensors shards, checked before packing."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from safetensors import SafetensorError, safe_open

from engine.errors import DataError, WireError
from engine.payload.length import TOKENIZER_CONFIG
from engine.payload.shape import MAX_CONFIG_BYTES, ModelShape, read_config
from engine.plan import SegmentKind
from engine.system.files import open_named, read_named
from engine.wire import digest_of, parse
from engine.worker.architecture import EMBEDDING, check_weights

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
MAX_TOKENIZER_CONFIG_BYTES: Final = 16 * 1024 * 1024


class Tensor(msgspec.Struct, frozen=True):
    """A tensor in the header of a weight file; `dtype` as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    """A model folder that can be trained. `shards` are ordered by their names, `tensors` what they contain."""

    config: dict[str, Any]
    shape: ModelShape
    tokenizer: Path
    tokenizer_config: bytes | None
    shards: tuple[Path, ...]
    tensors: dict[str, Tensor]


def _refuse(what: str, hint: str, code: str) -> DataError:
    return DataError(f"The model folder {what}.", hint, code=code)


def _required(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise _refuse(f"{folder} has no {name}", "Give a folder that save_pretrained wrote.", "model_file_missing")
    return path


def _indexed(folder: Path) -> dict[str, str]:
    """The tensor names in the index file, and the shard of each."""
    invalid = _refuse(f"has an invalid {INDEX}", "Save the model again.", "model_index_invalid")
    path = folder / INDEX
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise invalid
    try:
        raw = parse(read_named(path, MAX_INDEX_BYTES))
    except (WireError, UnicodeDecodeError) as error:
        raise invalid from error
    weights = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise invalid
    for shard in weights.values():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise invalid
    return weights


def _contents(shard: Path) -> dict[str, Tensor]:
    """The tensors in a shard's header."""
    try:
        with safe_open(str(shard), framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Tensor(str(one.get_dtype()), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise _refuse(
            f"has a damaged {shard.name}", "Copy or save the model again.", "model_weights_invalid"
        ) from error


def _shards(folder: Path) -> tuple[tuple[Path, ...], dict[str, Tensor]]:
    """The weight files and every tensor in them, by the index if there is one."""
    if not (folder / INDEX).is_file():
        path = _required(folder, SINGLE)
        return (path,), _contents(path)
    index = _indexed(folder)
    paths = tuple(_required(folder, name) for name in sorted(set(index.values())))
    tensors: dict[str, Tensor] = {}
    for path in paths:
        contents = _contents(path)
        if set(contents) != {name for name, shard in index.items() if shard == path.name}:
            raise _refuse(
                f"has a {path.name} that does not match {INDEX}", "Save the model again.", "model_index_invalid"
            )
        tensors.update(contents)
    return paths, tensors


def _config(folder: Path) -> bytes:
    try:
        return read_named(_required(folder, "config.json"), MAX_CONFIG_BYTES)
    except OSError as error:
        why = f"has a config.json that cannot be read: {error.strerror}"
        raise _refuse(why, "Save the model again.", "model_config_invalid") from error


def _tokenizer_config(folder: Path) -> bytes | None:
    try:
        return read_named(folder / TOKENIZER_CONFIG, MAX_TOKENIZER_CONFIG_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = f"has a {TOKENIZER_CONFIG} that cannot be read: {error.strerror}"
        raise _refuse(why, "Save the tokenizer again.", "model_config_invalid") from error


def read_folder(folder: Path, targets: tuple[str, ...], kinds: Collection[SegmentKind] = ()) -> ModelFolder:
    """The folder's parts. `targets` are the projections that LoRA trains, `kinds` the segments that train.

    Raises `DataError`: `model_folder_missing`, `model_file_missing`, `model_index_invalid`, and as `read_config` and
    `check_tensors`.
    """
    if not folder.is_dir():
        raise DataError(
            f"There is no model folder {folder}.",
            "Check the path given with --model.",
            code="model_folder_missing",
        )
    config, shape = read_config(_config(folder), kinds)
    tokenizer = _required(folder, "tokenizer.json")
    shards, tensors = _shards(folder)
    check_tensors(config, shape, targets, tensors)
    return ModelFolder(
        config=config,
        shape=shape,
        tokenizer=tokenizer,
        tokenizer_config=_tokenizer_config(folder),
        shards=shards,
        tensors=tensors,
    )


def check_tensors(
    config: Mapping[str, Any], shape: ModelShape, targets: tuple[str, ...], tensors: Mapping[str, Tensor]
) -> None:
    """Check what the headers of a model's weight files list against its config.json and the LoRA targets.

    Raises `DataError` (`model_lacks_targets`), and as `engine.worker.architecture.check_weights`.
    """
    required = {
        f"model.layers.{layer}.self_attn.{target}.weight": shape.projection(target)
        for layer in range(shape.layers)
        for target in targets
    }
    required[EMBEDDING] = (shape.vocab, shape.hidden)
    for name, size in required.items():
        if name not in tensors or tensors[name].shape != size:
            raise DataError(
                f"The model has no {name} of the shape that its config.json states.",
                "Give a model with Llama's or Qwen2's layout.",
                code="model_lacks_targets",
            )
    check_weights(config, shape.layers, {name: tensor.dtype for name, tensor in tensors.items()})


def folder_digest(folder: ModelFolder) -> str:
    """SHA-256 in hex over the names and digests of config.json, tokenizer.json and the shards."""
    files = {"config.json": digest_of(folder.config)}
    for path in (folder.tokenizer, *folder.shards):
        with open_named(path) as file:
            files[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of(files)
