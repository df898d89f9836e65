"""The disk that is ordered for a model, and the CUDA version that is asked for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.errors import UsageError
from engine.payload.hub import HubFile, HubModel
from engine.payload.model import ModelDescription, describe_model
from engine.plan import Model, Plan, ProviderRequest, preset
from engine.providers.runpod.pod_order import image_cuda, required_cuda
from engine.providers.settings import RunPodSettings, Settings
from engine.remote.lockfile import shipped_lock
from engine.runner.feasible import check_disk, weights_there
from engine.runner.spec import disk_gb, spec_for

BIG = Model(source="hub", name="meta-llama/Llama-3.1-70B", revision="0" * 40)
BIG_BYTES = 141_107_412_992


def a_plan(model: Model = BIG) -> Plan:
    return msgspec.structs.replace(preset("demo"), model=model, provider=ProviderRequest(name="runpod"))


def described(model_bytes: int) -> ModelDescription:
    files = HubModel(
        id=BIG.name,
        revision="0" * 40,
        config=b"{}",
        tokenizer=Path(),
        tokenizer_config=None,
        weights={"model.safetensors": HubFile("0" * 64, model_bytes)},
        tensors={},
        cache=Path(),
        uncached_bytes=0,
    )
    tiny = describe_model(preset("demo"), None)
    return msgspec.structs.replace(tiny, hub=files, stored_bytes=model_bytes)


def test_a_disk_is_ordered_for_the_real_size_of_the_model(tmp_path: Path) -> None:
    known = spec_for(tmp_path, a_plan(), Settings(), "name", BIG_BYTES).disk_gb
    assert 1.2 * BIG_BYTES / 1e9 + 32 > known > BIG_BYTES / 1e9 + 32
    assert spec_for(tmp_path, a_plan(), Settings(), "name").disk_gb == disk_gb(a_plan(), None) < known


def test_a_folders_weights_are_stored_once_for_each_kind_of_segment() -> None:
    model = msgspec.structs.replace(described(1000), hub=None)
    assert weights_there(a_plan(), described(1000)) == 1000
    assert weights_there(a_plan(), model) == 2000
    assert weights_there(msgspec.structs.replace(a_plan(), segments="raw"), model) == 1000


def test_a_model_that_does_not_fit_the_disk_is_refused_before_anything_is_rented(tmp_path: Path) -> None:
    small = Settings(runpod=RunPodSettings(disk_gb=108))
    with pytest.raises(UsageError) as caught:
        check_disk(tmp_path, a_plan(), small, described(BIG_BYTES))
    assert caught.value.code == "disk_too_small"
    assert "disk_gb" in caught.value.hint
    check_disk(tmp_path, a_plan(), Settings(), described(BIG_BYTES))
    with pytest.raises(UsageError) as caught:
        check_disk(tmp_path, a_plan(), Settings(), described(10**13))
    assert "--model" in caught.value.hint


@pytest.mark.parametrize(
    ("image", "cuda"),
    [
        ("runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404", (12, 8)),
        ("nvidia/cuda:12.4.1-cudnn-devel", (12, 4)),
        ("pytorch/pytorch:2.5.1-cuda12.4-cudnn9-runtime", (12, 4)),
        ("owner/image:cu118", (11, 8)),
        ("owner/image:2.5.1", None),
    ],
)
def test_the_cuda_version_is_asked_for_with_an_images_own_environment_too(
    image: str, cuda: tuple[int, ...] | None
) -> None:
    assert image_cuda(image) == cuda
    asked = required_cuda(RunPodSettings(image=image, environment="image"))
    locked = shipped_lock().cuda
    assert locked is not None
    assert asked == ".".join(map(str, cuda or locked))
    assert required_cuda(RunPodSettings(image=image)) == ".".join(map(str, max(cuda or (), locked)))
