"""An estimate of the memory that training a model needs. It is an estimate: the refusal and the dry run say so."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from engine.payload.model import ModelDescription
from engine.payload.targets import resolved_targets, trained_values
from engine.plan import MAX_LENGTH, Plan
from engine.worker.architecture import keeps_scores
from engine.worker.linears import ends_with

Kind = Literal["cuda", "cpu"]
_STORED: Final = {"BF16": "bfloat16", "F32": "float32"}
_BYTES: Final = {"bfloat16": 2, "float32": 4}
_ADAPTER_BYTES: Final = 16
"""Of each trained value: itself, its gradient and two moments, all float32."""
_LOGIT_BYTES: Final = 12
"""Of each logit: itself, its float32 copy and its gradient."""
_STATES: Final = 6
"""Tensors of the hidden size that a layer keeps for the backward pass beside its linear layers' results: both norms'
inputs and results, both sums."""
_SCORE_BYTES: Final = 8
"""Of each pair of tokens and head, where scores are computed whole: the scores and their softmax, in float32."""
_RUNTIME: Final = {"cuda": 600 * 1024**2, "cpu": 1200 * 1024**2}
"""The libraries' own memory: CUDA's context, or the processes of a run."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Bytes. `adapter` includes gradients and optimiser; `activations` includes the logits."""

    weights: int
    adapter: int
    activations: int
    runtime: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapter + self.activations + self.runtime


def estimate(plan: Plan, model: ModelDescription, kind: Kind) -> Estimate:
    """What one segment of the plan needs on a device of this kind, at its maximum length."""
    return _Needs(plan, model, kind).at(plan.training.length)


def longest_that_fits(plan: Plan, model: ModelDescription, kind: Kind, memory_bytes: int) -> int:
    """The largest maximum length in tokens that model and memory allow, by the estimate; 0 if not even 2 tokens fit.

    The plan's own maximum length is not regarded.
    """
    needs = _Needs(plan, model, kind)
    low, high = 1, min((*model.limits.values(), MAX_LENGTH))
    while low < high:
        middle = (low + high + 1) // 2
        if needs.at(middle).total <= memory_bytes:
            low = middle
        else:
            high = middle - 1
    return low if low >= 2 else 0


class _Needs:
    """The parts of the estimate that do not depend on the length, computed once."""

    def __init__(self, plan: Plan, model: ModelDescription, kind: Kind) -> None:
        dtype = plan.training.dtype
        if dtype == "auto":
            dtype = "bfloat16" if kind == "cuda" else "float32"
        item, self._shape = _BYTES[dtype], model.shape
        weights = model.parameters * item
        if kind == "cpu":  # weights of the right type are used where they lie; others are converted beside them
            weights = model.stored_bytes + (0 if _STORED.get(model.dtype) == dtype else weights)
        self._fixed = Estimate(
            weights=weights,
            adapter=_ADAPTER_BYTES * trained_values(model, plan.lora.r, plan.lora.targets),
            activations=0,
            runtime=_RUNTIME[kind],
        )
        linears = model.linears
        targets = resolved_targets(model, plan.lora.targets)
        results = sum(outputs for outputs, _ in linears.values())
        # peft computes each adapter in float32 on a float32 copy of its input.
        copies = sum(inputs for name, (_, inputs) in linears.items() if any(ends_with(name, one) for one in targets))
        hidden, layers = item * self._shape.hidden, self._shape.layers
        self._kept = item * results + 4 * copies + layers * (_STATES * hidden + _experts(model, item))
        # The trainer turns the fused kernels off on a GPU, so that its steps are deterministic.
        whole = kind == "cuda" or keeps_scores(model.config)
        self._scores = layers * self._shape.heads * _SCORE_BYTES if whole else 0
        if plan.training.gradient_checkpointing:  # one layer at a time, and the input of each
            self._kept = self._kept // layers + layers * hidden
            self._scores //= layers
        self._batch = plan.training.batch

    def at(self, length: int) -> Estimate:
        """The estimate at a maximum length in tokens."""
        kept = self._kept + _LOGIT_BYTES * self._shape.vocab + length * self._scores
        return msgspec.structs.replace(self._fixed, activations=self._batch * length * kept)


def _experts(model: ModelDescription, item: int) -> int:
    """Bytes that a layer's experts keep of each token: those that it is sent to, as wide as each is."""
    if not any("experts" in name for name in model.tensors):
        return 0
    config = model.config
    chosen = next(
        (config[name] for name in ("num_experts_per_tok", "moe_topk") if isinstance(config.get(name), int)), 2
    )
    width = config.get("moe_intermediate_size")
    size = width if isinstance(width, int) else model.shape.intermediate
    return item * int(chosen) * (3 * size + 2 * model.shape.hidden)
