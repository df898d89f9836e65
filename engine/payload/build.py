"""The payload of a plan: every file that the allocation trains from, built before anything is rented."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.payload.adapter_config import adapter_config
from engine.payload.chat.ragged import LEARNED
from engine.payload.data.samples import Sample
from engine.payload.inputs import Inputs, describe_inputs, with_digests
from engine.payload.local_files import NO_FILES, LocalFiles
from engine.payload.model import model_files
from engine.payload.prepare.tokens import Tokens
from engine.payload.seeds import expand, order_entries, sample_order
from engine.payload.synthetic import stand_in
from engine.payload.tensors import array_digest, tensor_bytes
from engine.payload.tokenizer_files import TokenizerFiles
from engine.payload.weights import lora_start
from engine.plan import Plan
from engine.worker.payload_names import HELD_OUT_IDS, HELD_OUT_LABELS, QUESTION, STOPS, TOKENIZER

TOKENS: Final = "tokens.safetensors"
ADAPTER: Final = "adapter.safetensors"
CONFIG: Final = "config.json"
ADAPTER_CONFIG: Final = "adapter_config.json"


class Payload(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The files by name (a `Path` is packed unchanged) and what describes them. `tokenizer` stays on this machine.

    `samples` is the number trained on, `dropped` of those with nothing left to learn, `truncated` of those that were
    cut. `model_digest` is the plan's for a folder, the SHA-256 of the weight file for the tiny model, the digest
    of `hub.json` for a hub model. `order_digest`, `init_digest` and `tokens_digest` are tensor digests of sample order,
    initial adapter and tokens. `noise_seed` seeds the random numbers of the training loop.
    """

    files: dict[str, bytes | Path]
    tokenizer: TokenizerFiles
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


def _order(plan: Plan, samples: int, order_seed: int) -> NDArray[np.int64]:
    steps = plan.target.steps
    needed = None if steps is None else (steps + plan.training.settling_steps) * plan.training.samples_an_update
    return sample_order(order_seed, samples, order_entries(samples, needed))


def build_payload(plan: Plan, files: LocalFiles = NO_FILES, *, cache: Path | None = None) -> Payload:
    """Build every file of the payload; both segments of a pair get the same. `cache` is a folder for token ids.

    Raises `DataError` for inputs that cannot be used or that differ from what the plan says of them, and
    `MissingExtraError` for a hub model if huggingface_hub is not installed.
    """
    seeds = expand(plan.seed)
    inputs = describe_inputs(plan, files, cache=cache)
    _require_unchanged(plan, inputs)
    weights, model_digest = model_files(plan, inputs.model)
    plan = with_digests(plan, inputs)
    tokens = _stood_in(plan, inputs, inputs.training_tokens(), seeds.noise)
    ids = {"input_ids": tokens.input_ids, "labels": tokens.labels, **_held_out(plan, inputs, seeds.order)}
    order = {"order": _order(plan, len(tokens.lengths), seeds.order)}
    start = lora_start(seeds.init, inputs.model.linears, plan.lora.r, plan.lora.targets)
    return Payload(
        files={
            TOKENS: tensor_bytes({**ids, **order}),
            ADAPTER: tensor_bytes(start),
            CONFIG: inputs.model.config_bytes,
            ADAPTER_CONFIG: adapter_config(plan),
            **_tokenizer(plan, inputs),
            **weights,
        },
        tokenizer=inputs.tokenizer,
        samples=len(tokens.lengths),
        dropped=tokens.dropped,
        truncated=tokens.truncated,
        data_digest=inputs.data.facts.digest,
        model_digest=model_digest,
        order_digest=array_digest(order),
        init_digest=array_digest(start),
        tokens_digest=array_digest(ids),
        noise_seed=seeds.noise,
    )


def _require_unchanged(plan: Plan, inputs: Inputs) -> None:
    """Refuse data or a chat template that give other samples than those that were reported."""
    data, evaluation = plan.data, plan.evaluation
    changed = data.digest not in (None, inputs.data.facts.digest)
    if evaluation is not None and inputs.held_out is not None:
        changed |= evaluation.digest not in (None, inputs.held_out.facts.digest)
    if changed or data.counts not in (None, inputs.report.counts):
        raise DataError(
            "The data or its chat template has changed since the plan was made.",
            "Start the run again.",
            code="data_changed",
        )


def _stood_in(plan: Plan, inputs: Inputs, tokens: Tokens, seed: int) -> Tokens:
    return stand_in(tokens, inputs.encoder.plain_ids(), seed) if plan.data.stand_in else tokens


def _held_out(plan: Plan, inputs: Inputs, seed: int) -> dict[str, NDArray[Any]]:
    """The held-out samples and the question, as the worker's evaluation reads them."""
    tokens = inputs.held_out_tokens()
    if plan.evaluation is None or tokens is None:
        return {}
    tokens = _stood_in(plan, inputs, tokens, seed)
    found: dict[str, NDArray[Any]] = {HELD_OUT_IDS: tokens.input_ids, HELD_OUT_LABELS: tokens.labels}
    if plan.evaluation.question is not None:
        found |= _question(plan.evaluation.question, inputs)
    return found


def _question(text: str, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """A chat up to where the answer begins, and the tokens that end one."""
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": "-"})
    encoded, faults = inputs.encoder.encode([Sample(messages=messages, learned=(False, True))])
    if faults:
        raise DataError(
            "The model's chat template refuses the plan's question.",
            "Give another model, or a plan without a question.",
            code="chat_template_refused",
        )
    ids, flags = encoded.sample(0)
    learned = np.flatnonzero(flags & LEARNED)
    eos = inputs.model.shape.eos
    stops = {int(ids[learned[-1]]), *(() if eos is None else (eos,))}
    return {QUESTION: ids[: learned[0]].reshape(1, -1), STOPS: np.array(sorted(stops), np.int32)}


def _tokenizer(plan: Plan, inputs: Inputs) -> dict[str, bytes | Path]:
    """The tokenizer travels only where the worker turns an answer into text."""
    asked = plan.evaluation is not None and plan.evaluation.question is not None
    return {TOKENIZER: inputs.model.tokenizer} if asked else {}
