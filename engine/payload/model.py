"""A plan's model before its weights are read: described and checked by the worker's own rules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import DataError
from engine.measure.safetensors_header import read_header
from engine.payload.folder import ModelFolder, check_tensors, folder_digest, read_folder
from engine.payload.hub import HubModel, fetch_hub
from engine.payload.length import check_length, length_limits
from engine.payload.listing import TOKENIZER, TOKENIZER_CONFIG
from engine.payload.shape import ModelShape, read_config
from engine.payload.targets import resolved_targets
from engine.payload.tiny import shipped_weights
from engine.plan import Plan
from engine.system.resources import data_path
from engine.wire import canonical, digest_of
from engine.worker.architecture import Tensor
from engine.worker.linears import dense_linears

WEIGHTS: Final = "weights.safetensors"
HUB: Final = "hub.json"


class ModelDescription(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the plan's segments can train.

    `config_bytes` is config.json as it is, `config` what it says. `tensors` are those in the weight files. `parameters`
    is the number of its weights, `stored_bytes` the size of its weight files, and `dtype` the type of most of its
    weights as safetensors names it. `tokenizer_config`, `chat_template` (chat_template.jinja) and `extras`, by name,
    are small files of the model, as far as it has them. `folder` or `hub` says where it comes from; the tiny model has
    neither.
    """

    config: dict[str, Any]
    config_bytes: bytes
    shape: ModelShape
    tokenizer: Path
    parameters: int
    stored_bytes: int
    dtype: str
    tensors: dict[str, Tensor]
    tokenizer_config: bytes | None = None
    chat_template: bytes | None = None
    extras: dict[str, bytes] = {}
    folder: ModelFolder | None = None
    hub: HubModel | None = None

    @property
    def download_bytes(self) -> int:
        """The size in bytes of what the allocation downloads by itself."""
        return 0 if self.hub is None else self.hub.download_bytes

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The dense linear layers as module name -> (outputs, inputs), which LoRA can train."""
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        return dense_linears(shapes, self.shape.layers)

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of all modules that have weights, as the weight files name them."""
        return tuple(name.removesuffix(".weight") for name in self.tensors)

    @property
    def limits(self) -> dict[str, int]:
        """Every limit of a sample's length in tokens, by the name under which the model states it."""
        return length_limits(self.shape, self.tokenizer_config)


def describe_model(plan: Plan, model_folder: Path | None) -> ModelDescription:
    """The plan's model, checked for its LoRA targets and, if it is decided, maximum length.

    A hub model is asked for as the allocation will download it: without a login, except on this machine. Raises
    `DataError` (`max_length_too_long`), and as `read_folder`, `fetch_hub`, `read_config`, `check_tensors` and
    `resolved_targets`.
    """
    if plan.model.source == "folder":
        model = _folder(model_folder)
    else:
        model = _hub(plan) if plan.model.source == "hub" else _tiny()
    resolved_targets(model, plan.lora.targets)
    if plan.training.max_length is not None:
        check_length(plan.training.max_length, model.limits)
    return model


def model_files(plan: Plan, model: ModelDescription) -> tuple[dict[str, bytes | Path], str]:
    """The payload's files with the weights, and the model's digest (see `Payload`).

    Raises `DataError` (`model_changed`) for a folder that differs from the plan's digest, and as `shipped_weights`.
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
    weights, digest = shipped_weights()
    return {WEIGHTS: weights}, digest


def _tiny() -> ModelDescription:
    raw = data_path("tiny_model", "config.json").read_bytes()
    config, shape = read_config(raw)
    weights, _ = shipped_weights()
    tensors = {name: Tensor(spec.dtype, spec.shape) for name, spec in read_header(memoryview(weights)).items()}
    parameters, dtype = _counted(tensors)
    return ModelDescription(
        config=config,
        config_bytes=raw,
        shape=shape,
        tokenizer=data_path("tiny_model", TOKENIZER),
        tokenizer_config=data_path("tiny_model", TOKENIZER_CONFIG).read_bytes(),
        parameters=parameters,
        stored_bytes=len(weights),
        dtype=dtype,
        tensors=tensors,
    )


def _folder(model_folder: Path | None) -> ModelDescription:
    if model_folder is None:
        raise DataError(
            "The plan uses a local model, but no model folder was given.",
            "Give the folder with --model.",
            code="model_folder_missing",
        )
    folder = read_folder(model_folder)
    parameters, dtype = _counted(folder.tensors)
    return ModelDescription(
        config=folder.config,
        config_bytes=folder.config_bytes,
        shape=folder.shape,
        tokenizer=folder.tokenizer,
        tokenizer_config=folder.tokenizer_config,
        chat_template=folder.chat_template,
        extras=folder.extras,
        parameters=parameters,
        stored_bytes=sum(path.stat().st_size for path in folder.shards),
        dtype=dtype,
        tensors=folder.tensors,
        folder=folder,
    )


def _hub(plan: Plan) -> ModelDescription:
    on_this_machine = plan.provider.kind.on_this_machine
    hub = fetch_hub(plan.model.name, plan.model.revision or "", anonymous=not on_this_machine)
    config, shape = read_config(hub.config)
    check_tensors(config, shape, hub.tensors)
    parameters, dtype = _counted(hub.tensors)
    return ModelDescription(
        config=config,
        config_bytes=hub.config,
        shape=shape,
        tokenizer=hub.tokenizer,
        tokenizer_config=hub.tokenizer_config,
        chat_template=hub.chat_template,
        extras=hub.extras,
        parameters=parameters,
        stored_bytes=hub.download_bytes,
        dtype=dtype,
        tensors=hub.tensors,
        hub=hub,
    )


def _counted(tensors: dict[str, Tensor]) -> tuple[int, str]:
    """How many values the tensors have together, and the type of most of them."""
    by_type: dict[str, int] = {}
    for tensor in tensors.values():
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return sum(by_type.values()), max(by_type, key=lambda dtype: by_type[dtype])
