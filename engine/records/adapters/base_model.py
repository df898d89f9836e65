"""The model that a run's adapter belongs to, found again and compared with what the run used, file by file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.errors import DataError, MissingExtraError, RefusedError, UsageError
from engine.payload.folder import folder_digest, read_folder
from engine.payload.listing import INDEX, SINGLE
from engine.payload.tiny import shipped_weights
from engine.system.files import open_named, read_named
from engine.system.resources import data_path
from engine.wire import digest_of, parse

if TYPE_CHECKING:
    from engine.payload.folder import ModelFolder
    from engine.plan import Plan

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
MAX_GENERATION_BYTES: Final = 1024 * 1024
MAX_TINY_BYTES: Final = 1024 * 1024
FOLDER_FILE: Final = "model_folder"
"""In a run's adapters folder: the path of the model folder that it used, as the system encodes it."""
_MAX_PATH_BYTES: Final = 4096
_UNREACHABLE: Final = frozenset({"hub_offline", "hub_unreachable", "hub_rate_limited"})

Files = dict[str, bytes | Path]
"""A model folder's files by name; a `Path` is a file elsewhere."""


def used_folder(adapters: Path) -> Path | None:
    """The model folder that the run with this adapters folder used; None if it used none, or if that is not known."""
    try:
        return Path(os.fsdecode(read_named(adapters / FOLDER_FILE, _MAX_PATH_BYTES)))
    except OSError:
        return None


def base_files(plan: Plan, model_digest: str | None, folder: Path | None) -> Files:
    """config.json and weights of the plan's model, and its generation_config.json if it has one.

    `model_digest` is what the run recorded of the model (`Payload.model_digest`). `folder` holds a folder's model, and
    may hold a hub model's; without it a hub model comes from the hub's cache, or is downloaded. Raises `UsageError`
    (`base_missing`), `RefusedError` (`base_differs`), `DataError` as `read_folder`, and for a hub model as
    `hub_errors.translated`, and `MissingExtraError`.
    """
    if plan.model.source == "tiny":
        _same_tiny(model_digest)
        return tiny_files()
    if plan.model.source == "hub":
        place = folder or _downloaded(plan.model.name, plan.model.revision or "")
        model = read_folder(place)
        found = _listing_digest(plan, model)
        _same(found, model_digest)
        return _files(place, model)
    if folder is None:
        raise UsageError(
            "The folder of the base model is not known any more.",
            "Give it with --base DIR.",
            code="base_missing",
        )
    model = read_folder(folder)
    _same(folder_digest(model), plan.model.digest)
    return _files(folder, model)


def _same(found: str, used: str | None) -> None:
    if found != used:
        raise RefusedError(
            "This is not the base model that the run trained on: its files have another digest.",
            "Give the unchanged folder of that model with --base DIR.",
            code="base_differs",
        )


def tiny_files() -> Files:
    """The shipped model's configuration and weights; raises `DataError` as `shipped_weights`."""
    config = read_named(data_path("tiny_model", CONFIG), MAX_TINY_BYTES)
    return {CONFIG: config, SINGLE: shipped_weights()[0]}


def _same_tiny(model_digest: str | None) -> None:
    if shipped_weights()[1] != model_digest:
        raise RefusedError(
            "This version ships another tiny model than the run used.",
            "Use the version of glasshouse that the row names.",
            code="base_differs",
        )


def _files(folder: Path, model: ModelFolder) -> Files:
    files: Files = {CONFIG: folder / CONFIG, **{shard.name: shard for shard in model.shards}}
    if [shard.name for shard in model.shards] != [SINGLE]:
        files[INDEX] = folder / INDEX
    generation = _generation_config(folder)
    return files if generation is None else {**files, GENERATION_CONFIG: generation}


def _generation_config(folder: Path) -> bytes | None:
    """How the model generates by default; no digest covers it, and it must be small."""
    try:
        return read_named(folder / GENERATION_CONFIG, MAX_GENERATION_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(
            f"The model folder has a {GENERATION_CONFIG} that cannot be read: {error.strerror}.",
            "Remove it, or save the model again.",
            code="model_config_invalid",
        ) from error


def _listing_digest(plan: Plan, model: ModelFolder) -> str:
    """As `HubModel.listing` of these weight files, digested."""
    files: dict[str, Any] = {}
    for path in model.shards:
        with open_named(path) as file:
            files[path.name] = {
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
                "size": path.stat().st_size,
            }
    return digest_of({"id": plan.model.name, "revision": plan.model.revision, "files": files})


def _downloaded(model: str, revision: str) -> Path:
    """The folder in the hub's cache with the model's files at the pinned revision."""
    try:
        config = _fetched(model, revision, CONFIG)
        _fetched(model, revision, "tokenizer.json")
        for shard in _shards(model, revision):
            _fetched(model, revision, shard)
    except ImportError as error:
        raise MissingExtraError(
            "A hub model needs huggingface_hub, which is not installed.",
            "Install glasshouse[local], or give the model's folder with --base DIR.",
        ) from error
    except DataError as error:
        if error.code in _UNREACHABLE:
            hint = "Connect to the hub once, or give the model's folder with --base DIR."
            raise DataError(error.message, hint, code=error.code) from error
        raise
    return config.parent


def _shards(model: str, revision: str) -> tuple[str, ...]:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, SINGLE, revision=revision), str):
        return (SINGLE,)
    try:
        index = _fetched(model, revision, INDEX)
    except DataError as error:
        if error.code == "model_file_missing":
            return (SINGLE,)
        raise
    weights = parse(index.read_bytes())["weight_map"]
    return tuple(sorted(set(map(str, weights.values()))))


def _fetched(model: str, revision: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    from engine.payload.hub_errors import translated

    with translated(model, revision, anonymous=False):
        return Path(hf_hub_download(model, name, revision=revision))
