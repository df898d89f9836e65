"""The payload of a plan: every file that the allocation trains from, built before anything is rented."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.payload.folder import folder_digest, read_folder
from engine.payload.hub import fetch_hub
from engine.payload.samples import DataFile, read_data
from engine.payload.seeds import expand, order_entries, sample_order
from engine.payload.shape import ModelShape, read_config
from engine.payload.synthetic import stand_in
from engine.payload.tensors import array_digest, tensor_bytes
from engine.payload.tokenize import ChatEncoder, Tokens
from engine.payload.weights import lora_start, tiny_weights
from engine.plan import Plan
from engine.system.resources import data_path
from engine.wire import canonical, digest_of

TOKENS: Final = "tokens.safetensors"
ADAPTER: Final = "adapter.safetensors"
CONFIG: Final = "config.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "weights.safetensors"
HUB: Final = "hub.json"


class Payload(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The files by name (a `Path` is packed unchanged) and what describes them.

    `samples` is the number trained on, `dropped` of those with nothing left to learn, `truncated` of those that were
    cut. `model_digest` is the plan's for a folder, the weights' tensor digest for the tiny model, the digest of
    `hub.json` for a hub model. `order_digest`, `init_digest` and `tokens_digest` are tensor digests of sample order,
    initial adapter and tokens. `noise_seed` seeds the random numbers of the training loop.
    """

    files: dict[str, bytes | Path]
    samples: int
    dropped: int
    truncated: int
    data_digest: str
    model_digest: str
    order_digest: str
    init_digest: str
    tokens_digest: str
    noise_seed: int

    def size(self) -> int:
        """The total size of the files in bytes."""
        return sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in self.files.values())


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of a plan: the number of samples in the data file, its digest, and a model folder's digest."""

    samples: int
    data_digest: str
    model_digest: str | None


class _Model(msgspec.Struct, frozen=True, kw_only=True):
    config: dict[str, Any]
    shape: ModelShape
    tokenizer: Path
    files: dict[str, bytes | Path]
    digest: str


def _data(plan: Plan, data_file: Path | None) -> DataFile:
    if plan.data.source == "builtin":
        return read_data(data_path("sample_corpus.jsonl"))
    if data_file is None:
        raise DataError(
            "The plan uses your own data, but no data file was given.",
            "Give the file with --data.",
            code="data_missing",
        )
    return read_data(data_file)


def _require_folder(model_folder: Path | None) -> Path:
    if model_folder is None:
        raise DataError(
            "The plan uses a local model, but no model folder was given.",
            "Give the folder with --model.",
            code="model_folder_missing",
        )
    return model_folder


def describe_inputs(plan: Plan, *, data_file: Path | None = None, model_folder: Path | None = None) -> Inputs:
    """Read and check the data file and the model folder of a plan; raises `DataError`."""
    data = _data(plan, data_file)
    model = None
    if plan.model.source == "folder":
        model = folder_digest(read_folder(_require_folder(model_folder), plan.lora.targets))
    return Inputs(samples=len(data.samples), data_digest=data.digest, model_digest=model)


def plan_with_digests(plan: Plan, *, data_file: Path | None = None, model_folder: Path | None = None) -> Plan:
    """The plan with the digests of its inputs: the form over which the plan's own digest is computed."""
    inputs = describe_inputs(plan, data_file=data_file, model_folder=model_folder)
    return msgspec.structs.replace(
        plan,
        data=msgspec.structs.replace(plan.data, digest=inputs.data_digest, samples=inputs.samples),
        model=msgspec.structs.replace(plan.model, digest=inputs.model_digest),
    )


def _tiny(init_seed: int) -> _Model:
    config, shape = read_config(data_path("tiny_model", "config.json").read_bytes())
    weights = tiny_weights(init_seed, shape)
    return _Model(
        config=config,
        shape=shape,
        tokenizer=data_path("tiny_model", "tokenizer.json"),
        files={WEIGHTS: tensor_bytes(weights)},
        digest=array_digest(weights),
    )


def _folder(plan: Plan, model_folder: Path) -> _Model:
    folder = read_folder(model_folder, plan.lora.targets)
    digest = folder_digest(folder)
    if plan.model.digest not in (None, digest):
        raise DataError(
            "The model folder has changed since the plan was made.",
            "Start the run again.",
            code="model_changed",
        )
    shards: dict[str, bytes | Path] = {
        f"weights-{number:05}.safetensors": path for number, path in enumerate(folder.shards, start=1)
    }
    return _Model(config=folder.config, shape=folder.shape, tokenizer=folder.tokenizer, files=shards, digest=digest)


def _hub(plan: Plan) -> _Model:
    hub = fetch_hub(plan.model.name, plan.model.revision or "")
    return _Model(
        config=hub.config,
        shape=hub.shape,
        tokenizer=hub.tokenizer,
        files={HUB: canonical(hub.listing())},
        digest=digest_of(hub.listing()),
    )


def _model(plan: Plan, model_folder: Path | None, init_seed: int) -> _Model:
    if plan.model.source == "folder":
        return _folder(plan, _require_folder(model_folder))
    return _hub(plan) if plan.model.source == "hub" else _tiny(init_seed)


def _tokens(plan: Plan, data: DataFile, model: _Model, noise_seed: int) -> Tokens:
    if plan.training.max_length > model.shape.positions:
        raise DataError(
            f"The requested maximum length exceeds the {model.shape.positions} positions of the model.",
            f"Give --max-length {model.shape.positions} or less.",
            code="max_length_too_long",
        )
    encoder = ChatEncoder(model.tokenizer, model.shape)
    tokens = encoder.encode(data.samples, plan.training.max_length)
    return stand_in(tokens, encoder.plain_ids(), noise_seed) if plan.data.stand_in else tokens


def _order(plan: Plan, samples: int, order_seed: int) -> NDArray[np.int64]:
    steps = plan.target.steps
    needed = None if steps is None else (steps + plan.training.warmup_steps) * plan.training.batch
    return sample_order(order_seed, samples, order_entries(samples, needed))


def _adapter_config(plan: Plan) -> bytes:
    """peft's `LoraConfig` for the collected adapter. Only a hub model has a name that peft can resolve."""
    return canonical(
        {
            "base_model_name_or_path": plan.model.name if plan.model.source == "hub" else None,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": plan.lora.alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": plan.lora.r,
            "revision": plan.model.revision,
            "target_modules": list(plan.lora.targets),
            "task_type": "CAUSAL_LM",
        }
    )


def build_payload(plan: Plan, *, data_file: Path | None = None, model_folder: Path | None = None) -> Payload:
    """Build every file of the payload; both segments of a pair get the same.

    Raises `DataError` for inputs that cannot be used or that differ from the digests in the plan, and
    `MissingExtraError` for a hub model if huggingface_hub is not installed.
    """
    seeds = expand(plan.seed)
    data = _data(plan, data_file)
    if plan.data.digest not in (None, data.digest):
        raise DataError(
            "The data file has changed since the plan was made.", "Start the run again.", code="data_changed"
        )
    model = _model(plan, model_folder, seeds.init)
    tokens = _tokens(plan, data, model, seeds.noise)
    samples = len(tokens.lengths)
    order = {"order": _order(plan, samples, seeds.order)}
    ids = {"input_ids": tokens.input_ids, "labels": tokens.labels}
    start = lora_start(seeds.init, model.shape, plan.lora.r, plan.lora.targets)
    return Payload(
        files={
            TOKENS: tensor_bytes({**ids, **order}),
            ADAPTER: tensor_bytes(start),
            CONFIG: canonical(model.config),
            ADAPTER_CONFIG: _adapter_config(plan),
            **model.files,
        },
        samples=samples,
        dropped=tokens.dropped,
        truncated=tokens.truncated,
        data_digest=data.digest,
        model_digest=model.digest,
        order_digest=array_digest(order),
        init_digest=array_digest(start),
        tokens_digest=array_digest(ids),
        noise_seed=seeds.noise,
    )
