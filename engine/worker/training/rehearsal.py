"""A dry run on dummy data, so that every lazy import and every thread exists before the process is locked down."""

from __future__ import annotations

import os

import msgspec

from engine.plan import Plan, Target
from engine.worker.isolation.wipe import free_math_buffers, sweep_heap, sweep_stack, trim
from engine.worker.training import adapter, loop, secret_patterns
from engine.worker.training.model import Rehearsal, Workload, add_lora, choose_device, empty_model


class _SilentReporter:
    def progress(self, first: int, losses: list[float], nanos: list[int]) -> None:
        pass

    def checkpoint(self, step: int, tensor_digest: str, step_chain: str | None) -> None:
        pass

    def should_stop(self) -> None:
        return None


def rehearse(plan: Plan, model_type: str) -> None:
    """Two LoRA steps, a digest, an adapter file and a wipe on a tiny model of the same architecture."""
    import torch

    device, dtype = choose_device(plan)
    state = torch.get_rng_state()
    base = empty_model(Rehearsal(model_type).config())
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.fill_(0.01)
    base.tie_weights()
    base.requires_grad_(False)
    base.to(device=device, dtype=getattr(torch, dtype))
    wrapped = add_lora(base, plan)
    trainable = {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.data = torch.full(parameter.shape, 0.01, device=device, dtype=torch.float32)
    tokens = {
        "input_ids": torch.ones((1, 8), dtype=torch.int32),
        "labels": torch.ones((1, 8), dtype=torch.int32),
        "order": torch.zeros(1, dtype=torch.int64),
    }
    workload = Workload(wrapped, dict(sorted(trainable.items())), tokens, device, dtype, [])
    short = msgspec.structs.replace(
        plan,
        target=Target(steps=2),
        inject_overhead_pct=0.0,
        training=msgspec.structs.replace(plan.training, warmup_steps=1, checkpoint_every=1),
    )
    trainer = loop.Trainer(workload, short)
    reporter = _SilentReporter()
    loop.warm_up(trainer, reporter)
    loop.measure(trainer, reporter, with_evidence=True)
    fd = os.memfd_create("rehearsal")
    adapter.write(workload.trainable, "rehearsal", fd)
    adapter.is_finite(workload.trainable)
    os.close(fd)
    secret_patterns.zero_in_place(trainer)
    free_math_buffers()
    sweep_heap()
    sweep_stack()
    trim()
    torch.set_rng_state(state)
