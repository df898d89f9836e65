"""A plan's model before its weights are read: described and checked by the worker's own rules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import DataError
from engine.payload.folder import ModelFolder, Tensor, check_tensors, folder_digest, read_folder
from engine.payload.hub import HubModel, fetch_hub
from engine.payload.length import check_length, length_limits
from engine.payload.shape import ModelShape, read_config
from engine.payload.tensors import array_digest, tensor_bytes
from engine.payload.weights import tiny_weights
from engine.plan import Plan
from engine.system.resources import data_path
from engine.wire import canonical, digest_of

WEIGHTS: Final = "weights.safetensors"
HUB: Final = "hub.json"
_TINY_DTYPE: Final = "F32"
_TINY_ITEM: Final = 4


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the plan's segments can train.

    `parameters` is the number of its weights, `stored_bytes` the size of its weight files, and `dtype` the type of most
    of its weights as safetensors names it. `folder` or `hub` says where they come from; the tiny model has neither.
    """

    config: dict[str, Any]
    shape: ModelShape
    tokenizer: Path
    parameters: int
    stored_bytes: int
    dtype: str
    folder: ModelFolder | None = None
    hub: HubModel | None = None

    @property
    def download_bytes(self) -> int:
        """The size in bytes of what the allocation downloads by itself."""
        return 0 if self.hub is None else self.hub.download_bytes


def describe_model(plan: Plan, model_folder: Path | None) -> ModelDescription:
    """The plan's model, checked for its segments, LoRA targets and maximum length.

    A hub model is asked for as the allocation will download it: without a login, except on this machine. Raises
    `DataError` (`max_length_too_long`), and as `read_folder`, `fetch_hub`, `read_config` and `check_tensors`.
    """
    if plan.model.source == "folder":
        return _folder(plan, model_folder)
    return _hub(plan) if plan.model.source == "hub" else _tiny(plan)


def model_files(plan: Plan, model: ModelDescription, init_seed: int) -> tuple[dict[str, bytes | Path], str]:
    """The payload's files with the weights, and the model's digest (see `Payload`).

    Raises `DataError` (`model_changed`) for a folder that differs from the plan's digest.
    """
    if model.folder is not None:
        digest = folder_digest(model.folder)
        if plan.model.digest not in (None, digest):
            raise DataError(
                "The model folder has changed since the plan was made.",
                "Start the run again.",
                code="model_changed",
            )
        shards = enumerate(model.folder.shards, start=1)
        return {f"weights-{number:05}.safetensors": path for number, path in shards}, digest
    if model.hub is not None:
        listing = model.hub.listing()
        return {HUB: canonical(listing)}, digest_of(listing)
    weights = tiny_weights(init_seed, model.shape)
    return {WEIGHTS: tensor_bytes(weights)}, array_digest(weights)


def _tiny(plan: Plan) -> ModelDescription:
    config, shape = read_config(data_path("tiny_model", "config.json").read_bytes(), plan.kinds())
    check_length(plan.training.max_length, length_limits(config, shape, None))
    return ModelDescription(
        config=config,
        shape=shape,
        tokenizer=data_path("tiny_model", "tokenizer.json"),
        parameters=shape.parameters,
        stored_bytes=_TINY_ITEM * shape.parameters,
        dtype=_TINY_DTYPE,
    )


def _folder(plan: Plan, model_folder: Path | None) -> ModelDescription:
    if model_folder is None:
        raise DataError(
            "The plan uses a local model, but no model folder was given.",
            "Give the folder with --model.",
            code="model_folder_missing",
        )
    folder = read_folder(model_folder, plan.lora.targets, plan.kinds())
    check_length(plan.training.max_length, length_limits(folder.config, folder.shape, folder.tokenizer_config))
    parameters, dtype = _counted(folder.tensors)
    return ModelDescription(
        config=folder.config,
        shape=folder.shape,
        tokenizer=folder.tokenizer,
        parameters=parameters,
        stored_bytes=sum(path.stat().st_size for path in folder.shards),
        dtype=dtype,
        folder=folder,
    )


def _hub(plan: Plan) -> ModelDescription:
    on_this_machine = plan.provider.kind.on_this_machine
    hub = fetch_hub(plan.model.name, plan.model.revision or "", anonymous=not on_this_machine)
    config, shape = read_config(hub.config, plan.kinds())
    check_tensors(config, shape, plan.lora.targets, hub.tensors)
    check_length(plan.training.max_length, length_limits(config, shape, hub.tokenizer_config))
    parameters, dtype = _counted(hub.tensors)
    return ModelDescription(
        config=config,
        shape=shape,
        tokenizer=hub.tokenizer,
        parameters=parameters,
        stored_bytes=hub.download_bytes,
        dtype=dtype,
        hub=hub,
    )


def _counted(tensors: dict[str, Tensor]) -> tuple[int, str]:
    """How many values the tensors have together, and the type of most of them."""
    by_type: dict[str, int] = {}
    for tensor in tensors.values():
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return sum(by_type.values()), max(by_type, key=lambda dtype: by_type[dtype])
