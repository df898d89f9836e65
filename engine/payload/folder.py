"""A local model folder: config.json, tokenizer.json and safetensors shards, checked before packing."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from safetensors import SafetensorError, safe_open

from engine.errors import DataError, WireError
from engine.payload.listing import (
    CHAT_TEMPLATE,
    EXTRAS,
    INDEX,
    SINGLE,
    SMALL_FILES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    check_listing,
)
from engine.payload.shape import MAX_CONFIG_BYTES, ModelShape, read_config
from engine.system.files import open_named, read_named
from engine.wire import digest_of, parse, sha256_hex
from engine.worker.architecture import Tensor, check_weights, embedding_of

MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
MAX_FILES: Final = 100_000
"""The most entries of a model folder that are listed."""


class ModelFolder(msgspec.Struct, frozen=True, kw_only=True):
    """A model folder that can be trained. `shards` are ordered by their names, `tensors` what they contain.

    `config_bytes` is config.json as it is. `tokenizer_config`, `chat_template` (chat_template.jinja) and `extras`, by
    name, are further small files, as far as there are any.
    """

    config: dict[str, Any]
    config_bytes: bytes
    shape: ModelShape
    tokenizer: Path
    tokenizer_config: bytes | None
    chat_template: bytes | None
    extras: dict[str, bytes]
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


def _small_files(folder: Path) -> dict[str, bytes]:
    """The small files that the folder has beside config.json and tokenizer.json."""
    found: dict[str, bytes] = {}
    for name, most in SMALL_FILES.items():
        try:
            found[name] = read_named(folder / name, most)
        except FileNotFoundError:
            continue
        except OSError as error:
            why = f"has a {name} that cannot be read: {error.strerror}"
            raise _refuse(why, "Save the tokenizer again.", "model_config_invalid") from error
    return found


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in itertools.islice(folder.iterdir(), MAX_FILES)}
    except OSError as error:
        why = f"{folder} cannot be listed: {error.strerror}"
        raise _refuse(why, "Check its permissions.", "model_folder_missing") from error


def read_folder(folder: Path) -> ModelFolder:
    """The folder's parts.

    Raises `DataError`: `model_folder_missing`, `model_file_missing`, `model_index_invalid`, and as `check_listing`,
    `read_config` and `check_tensors`.
    """
    if not folder.is_dir():
        raise DataError(
            f"There is no model folder {folder}.",
            "Check the path given with --model.",
            code="model_folder_missing",
        )
    names = _names(folder)
    if "config.json" not in names:
        check_listing(f"The model folder {folder}", names)  # a folder of another format has none
    raw = _config(folder)
    config, shape = read_config(raw)
    check_listing(f"The model folder {folder}", names)
    tokenizer = _required(folder, TOKENIZER)
    shards, tensors = _shards(folder)
    check_tensors(config, shape, tensors)
    small = _small_files(folder)
    return ModelFolder(
        config=config,
        config_bytes=raw,
        shape=shape,
        tokenizer=tokenizer,
        tokenizer_config=small.get(TOKENIZER_CONFIG),
        chat_template=small.get(CHAT_TEMPLATE),
        extras={name: small[name] for name in EXTRAS if name in small},
        shards=shards,
        tensors=tensors,
    )


def check_tensors(config: Mapping[str, Any], shape: ModelShape, tensors: Mapping[str, Tensor]) -> None:
    """Check what the headers of a model's weight files list against its config.json.

    Raises `DataError` (`model_weights_invalid`), and as `engine.worker.architecture.check_weights`.
    """
    check_weights(config, shape.layers, tensors)
    embedding = embedding_of(tensors)
    if embedding is None or tensors[embedding].shape[:1] != (shape.vocab,):
        raise DataError(
            f"The model's embedding does not have the {shape.vocab} tokens that its config.json states.",
            "Check that config.json and the weights belong together.",
            code="model_weights_invalid",
        )


def folder_digest(folder: ModelFolder) -> str:
    """SHA-256 in hex over the names and digests of all files that are used, each as its bytes are."""
    small = {
        "config.json": folder.config_bytes,
        TOKENIZER_CONFIG: folder.tokenizer_config,
        CHAT_TEMPLATE: folder.chat_template,
        **folder.extras,
    }
    files = {name: sha256_hex(content) for name, content in small.items() if content is not None}
    for path in (folder.tokenizer, *folder.shards):
        with open_named(path) as file:
            files[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of(files)
