"""A dry run on dummy data, so that every lazy import and every thread exists before the process is locked down.

The trainer learns its model only after the release, and a private folder's config.json is nobody's business before. So
the rehearsal knows the model's type alone, which the job states in the clear, and takes transformers' own default
configuration of it, shrunk. The default has the type's kinds of layers, attention, experts and masks; what a model's
own config.json changes (sizes, biases, activations, rotary scaling) is chosen among code that is loaded by then.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from engine.plan import Plan, Target
from engine.worker.isolation.wipe import free_math_buffers, sweep_heap, sweep_stack, trim
from engine.worker.linears import ends_with
from engine.worker.training import adapter, evaluation, loop, secret_patterns
from engine.worker.training.classes import import_classes, small_config
from engine.worker.training.model import Workload, add_lora, choose_device, filled_model, linears_of, target_endings


class _SilentReporter:
    def progress(self, first: int, losses: list[float], nanos: list[int]) -> None:
        pass

    def checkpoint(self, step: int, tensor_digest: str, step_chain: str | None) -> None:
        pass

    def should_stop(self) -> None:
        return None


def rehearse(plan: Plan, model_type: str) -> None:
    """Two LoRA steps, a digest, an adapter file and a wipe on a tiny model of the same type."""
    import torch

    device, dtype = choose_device(plan)
    state = torch.get_rng_state()
    workload = _workload(plan, model_type, device, dtype)
    short = msgspec.structs.replace(
        plan,
        target=Target(steps=2),
        inject_overhead_pct=0.0,
        training=msgspec.structs.replace(plan.training, settling_steps=1, checkpoint_every=1),
    )
    trainer = loop.Trainer(workload, short)
    reporter = _SilentReporter()
    loop.settle(trainer, reporter)
    loop.measure(trainer, reporter, with_evidence=True)
    evaluation.rehearse(workload, plan)
    fd = os.memfd_create("rehearsal")
    adapter.write(workload.trainable, "rehearsal", fd)
    adapter.is_finite(workload.trainable)
    os.close(fd)
    secret_patterns.zero_in_place(trainer)
    secret_patterns.zero_copies(workload)
    free_math_buffers()
    sweep_heap()
    sweep_stack()
    trim()
    torch.set_rng_state(state)


def _workload(plan: Plan, model_type: str, device: str, dtype: str) -> Workload:
    """The tiny model, loaded from weights as its files would have them."""
    import torch

    config, weights = _as_files(model_type)
    base = filled_model(config, weights, getattr(torch, dtype))
    base.to(device)
    wrapped = add_lora(base, plan, _targets(base, plan))
    trainable = {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.data = torch.full(parameter.shape, 0.01, device=device, dtype=torch.float32)
    tokens = {
        "input_ids": torch.ones((1, 8), dtype=torch.int32),
        "labels": torch.ones((1, 8), dtype=torch.int32),
        "order": torch.zeros(1, dtype=torch.int64),
    }
    return Workload(wrapped, dict(sorted(trainable.items())), tokens, device, dtype, [])


def _as_files(model_type: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and weights of the tiny model, in the layout in which transformers writes them."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    _, causal = import_classes(model_type)
    config = small_config(model_type)
    model = causal._from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    return config.to_dict(), dict(revert_weight_conversion(model, model.state_dict()))


def _targets(model: Any, plan: Plan) -> tuple[str, ...]:
    """The plan's targets that the tiny model has; any will do where it has none of them."""
    wanted = target_endings(model, plan.lora.targets)
    there = tuple(ending for ending in wanted if any(ends_with(name, ending) for name in linears_of(model)))
    return there or target_endings(model, ("all-linear",))
