"""The estimate of memory: the published runs fit the GPUs that they ran on; its parts grow with their causes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import UsageError
from engine.payload.listing import SINGLE
from engine.payload.memory import estimate, longest_that_fits
from engine.payload.model import ModelDescription
from engine.payload.shape import read_config
from engine.plan import Plan, preset, presets
from engine.providers.gpu_table import memory_of
from engine.providers.protocol import Device
from engine.runner.feasible import Need, check_memory
from engine.worker.architecture import Tensor
from tests.fake_hub import FakeHub

GIB = 1024**3


@pytest.fixture(scope="module")
def large() -> ModelDescription:
    """Qwen2.5-7B by its config alone."""
    with FakeHub() as hub:
        hub.become_large()
        raw, file = hub.files["config.json"], hub.files[SINGLE]
    config, shape = read_config(raw)
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    tensors = {name: Tensor(one["dtype"], tuple(one["shape"])) for name, one in header.items()}
    parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    return ModelDescription(
        config=config,
        config_bytes=raw,
        shape=shape,
        tokenizer=Path("tokenizer.json"),
        parameters=parameters,
        stored_bytes=2 * parameters,
        dtype="BF16",
        tensors=tensors,
    )


def changed(plan: Plan, **training: Any) -> Plan:
    return msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, **training))


def test_the_published_runs_fit_the_gpus_that_they_ran_on(large: ModelDescription) -> None:
    assert 7.5e9 < large.parameters < 7.7e9
    for name, plan in presets().items():
        if not name.startswith("7b"):
            continue
        needed = estimate(plan, large, "cuda").total
        assert 14 * GIB < needed < 16 * GIB
        for gpu in plan.provider.gpus:
            memory = memory_of(gpu)
            assert memory is not None
            assert memory >= needed, (name, gpu)


def test_each_part_grows_with_its_cause(large: ModelDescription) -> None:
    plan = preset("7b-smoke")
    before = estimate(plan, large, "cuda")
    wider = estimate(changed(plan, batch=4), large, "cuda")
    longer = estimate(changed(plan, max_length=256), large, "cuda")
    assert wider.activations == 4 * before.activations
    # A GPU keeps every pair of tokens' score, so that length counts twice.
    assert longer.activations == 4 * before.activations + 28 * 28 * 8 * (256**2 - 4 * 64**2)
    assert estimate(changed(plan, grad_accum=4), large, "cuda") == before
    assert (longer.weights, longer.adapter) == (before.weights, before.adapter)
    lora = msgspec.structs.replace(plan.lora, r=16, targets=("q_proj",))
    narrower = estimate(msgspec.structs.replace(plan, lora=lora), large, "cuda")
    assert narrower.adapter == 28 * 16 * (3584 + 3584) * 16
    assert estimate(changed(plan, dtype="float32"), large, "cuda").weights == 2 * before.weights
    converted = estimate(changed(plan, dtype="auto"), large, "cpu")  # float32 beside the file's bfloat16
    assert converted.weights == large.stored_bytes + 4 * large.parameters
    assert estimate(plan, large, "cpu").weights == large.stored_bytes


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all(large: ModelDescription) -> None:
    plan = changed(preset("7b-smoke"), max_length=2048)
    every, one = (estimate(changed(plan, gradient_checkpointing=on), large, "cuda").activations for on in (False, True))
    logits, inputs = 2048 * 12 * 152064, 2048 * 28 * 2 * 3584
    assert every - logits == pytest.approx(28 * (one - logits - inputs), rel=0.001)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_longest_length_fits_and_one_more_token_does_not(large: ModelDescription, checkpointing: bool) -> None:
    plan = changed(preset("7b-smoke"), gradient_checkpointing=checkpointing, max_length=None)
    found = longest_that_fits(plan, large, "cuda", 24 * GIB)
    assert 64 < found < 32768
    for length, fits in ((found, True), (found + 1, False)):
        assert (estimate(changed(plan, max_length=length), large, "cuda").total <= 24 * GIB) is fits
    assert longest_that_fits(plan, large, "cuda", 14 * GIB) == 0
    assert longest_that_fits(plan, large, "cuda", 10**15) == 32768


@pytest.mark.parametrize(
    ("kind", "memory", "code"),
    [("cuda", 15, "model_too_large"), ("cuda", 16, None), ("cuda", None, None), ("cpu", 500, "model_needs_gpu")],
)
def test_a_device_is_refused_with_its_memory(
    large: ModelDescription, kind: Any, memory: int | None, code: str | None
) -> None:
    device = Device(name="a device", kind=kind, memory=None if memory is None else memory * GIB)
    needs = (Need(device=device, estimate=estimate(preset("7b-smoke"), large, kind)),)
    if code is None:
        check_memory(large, needs)
        return
    with pytest.raises(UsageError) as caught:
        check_memory(large, needs)
    assert caught.value.code == code
    assert caught.value.hint
    if code == "model_too_large":
        assert "an estimated" in caught.value.message
        assert "15.0 GiB" in caught.value.message


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("NVIDIA H100 80GB HBM3", 80),
        ("NVIDIA RTX A4000", 16),
        ("NVIDIA GeForce RTX 4090", 24),
        ("NVIDIA RTX 6000 Ada Generation", 48),
        ("NVIDIA L4", 24),
        ("NVIDIA L40S", 48),
        ("Something else", None),
    ],
)
def test_common_gpus_are_known_by_name(name: str, size: int | None) -> None:
    assert memory_of(name) == (None if size is None else size * GIB)
