"""The payload of a plan: every file that the allocation trains from, built before anything is rented."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.payload.folder import folder_digest
from engine.payload.model import ModelDescription, describe_model, model_files
from engine.payload.samples import DataFile, read_data
from engine.payload.seeds import expand, order_entries, sample_order
from engine.payload.synthetic import stand_in
from engine.payload.tensors import array_digest, tensor_bytes
from engine.payload.tokenize import ChatEncoder, Tokens
from engine.payload.weights import lora_start
from engine.plan import Plan
from engine.system.resources import data_path
from engine.wire import canonical

TOKENS: Final = "tokens.safetensors"
ADAPTER: Final = "adapter.safetensors"
CONFIG: Final = "config.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
QUICK_DATA_BYTES: Final = 16 * 1024 * 1024
"""The size of a data file up to which it is tokenised before its run is entered; it takes a few seconds."""


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
    """The checked inputs of a plan.

    `tokens` is None where the data file is too large to tokenise before the run is entered; `bytes` is its size.
    """

    data: DataFile
    bytes: int
    model: ModelDescription
    model_digest: str | None
    tokens: Tokens | None


def _data(plan: Plan, data_file: Path | None) -> tuple[DataFile, int]:
    """The samples, and the size of their file in bytes."""
    if plan.data.source == "builtin":
        data_file = data_path("sample_corpus.jsonl")
    if data_file is None:
        raise DataError(
            "The plan uses your own data, but no data file was given.",
            "Give the file with --data.",
            code="data_missing",
        )
    return read_data(data_file), data_file.stat().st_size


def describe_inputs(
    plan: Plan, *, data_file: Path | None = None, model_folder: Path | None = None, whole: bool = False
) -> Inputs:
    """Read and check the data file and the model of a plan, as `build_payload` will.

    A data file above `QUICK_DATA_BYTES` is tokenised only if `whole` is set. Raises `DataError`, and
    `MissingExtraError` for a hub model if huggingface_hub is not installed.
    """
    data, size = _data(plan, data_file)
    model = describe_model(plan, model_folder)
    encoder = ChatEncoder(model.tokenizer, model.shape)
    quick = whole or size <= QUICK_DATA_BYTES
    return Inputs(
        data=data,
        bytes=size,
        model=model,
        model_digest=None if model.folder is None else folder_digest(model.folder),
        tokens=encoder.encode(data.samples, plan.training.max_length) if quick else None,
    )


def with_digests(plan: Plan, inputs: Inputs) -> Plan:
    """The plan with the digests of its inputs: the form over which the plan's own digest is computed."""
    return msgspec.structs.replace(
        plan,
        data=msgspec.structs.replace(plan.data, digest=inputs.data.digest, samples=len(inputs.data.samples)),
        model=msgspec.structs.replace(plan.model, digest=inputs.model_digest),
    )


def plan_with_digests(plan: Plan, *, data_file: Path | None = None, model_folder: Path | None = None) -> Plan:
    """`with_digests` of the inputs at these places; raises as `describe_inputs`."""
    return with_digests(plan, describe_inputs(plan, data_file=data_file, model_folder=model_folder))


def _tokens(plan: Plan, data: DataFile, model: ModelDescription, noise_seed: int) -> Tokens:
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
    data, _ = _data(plan, data_file)
    if plan.data.digest not in (None, data.digest):
        raise DataError(
            "The data file has changed since the plan was made.", "Start the run again.", code="data_changed"
        )
    model = describe_model(plan, model_folder)
    weights, model_digest = model_files(plan, model, seeds.init)
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
            **weights,
        },
        samples=samples,
        dropped=tokens.dropped,
        truncated=tokens.truncated,
        data_digest=data.digest,
        model_digest=model_digest,
        order_digest=array_digest(order),
        init_digest=array_digest(start),
        tokens_digest=array_digest(ids),
        noise_seed=seeds.noise,
    )
