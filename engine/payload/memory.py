"""An estimate of the memory that training a model needs. It is an estimate: the refusal and the dry run say so."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from engine.payload.model import ModelDescription
from engine.plan import Plan

Kind = Literal["cuda", "cpu"]
_STORED: Final = {"BF16": "bfloat16", "F32": "float32"}
_BYTES: Final = {"bfloat16": 2, "float32": 4}
_ADAPTER_BYTES: Final = 16
"""Of each trained value: itself, its gradient and two moments, all float32."""
_LOGIT_BYTES: Final = 12
"""Of each logit: itself, its float32 copy and its gradient."""
_STATES: Final = 10
"""Tensors of the hidden size that a layer keeps for the backward pass."""
_INNER: Final = 4
"""The same of the intermediate size."""
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
    """What one segment of the plan needs on a device of this kind."""
    dtype = plan.training.dtype
    if dtype == "auto":
        dtype = "bfloat16" if kind == "cuda" else "float32"
    item, shape = _BYTES[dtype], model.shape
    weights = model.parameters * item
    if kind == "cpu":  # weights of the right type are used where they lie; others are converted beside them
        weights = model.stored_bytes + (0 if _STORED.get(model.dtype) == dtype else weights)
    trained = shape.layers * plan.lora.r * sum(sum(shape.projection(target)) for target in plan.lora.targets)
    tokens = plan.training.batch * plan.training.max_length
    # peft computes each adapter in float32 on a float32 copy of its input.
    kept = item * (_STATES * shape.hidden + _INNER * shape.intermediate) + 4 * len(plan.lora.targets) * shape.hidden
    return Estimate(
        weights=weights,
        adapter=_ADAPTER_BYTES * trained,
        activations=tokens * (shape.layers * kept + _LOGIT_BYTES * shape.vocab),
        runtime=_RUNTIME[kind],
    )
