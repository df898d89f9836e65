"""The disk that is ordered for a model, and the CUDA version that is asked for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.errors import UsageError
from engine.payload import hub
from engine.plan import Model, Plan, ProviderRequest, preset
from engine.providers.runpod.pod_order import image_cuda, required_cuda
from engine.providers.settings import RunPodSettings, Settings
from engine.remote.lockfile import shipped_lock
from engine.runner.spec import check_disk, disk_gb, model_size, spec_for

BIG = Model(source="hub", name="meta-llama/Llama-3.1-70B", revision="0" * 40)
BIG_BYTES = 141_107_412_992


def a_plan(model: Model = BIG) -> Plan:
    return msgspec.structs.replace(preset("demo"), model=model, provider=ProviderRequest(name="runpod"))


def test_a_disk_is_ordered_for_the_real_size_of_the_model(tmp_path: Path) -> None:
    known = spec_for(tmp_path, a_plan(), Settings(), "name", BIG_BYTES).disk_gb
    assert known >= 2 * BIG_BYTES / 1e9 + 28
    assert spec_for(tmp_path, a_plan(), Settings(), "name").disk_gb == disk_gb(a_plan(), None) < known


def test_a_model_that_does_not_fit_the_disk_is_refused_before_anything_is_rented() -> None:
    small = Settings(runpod=RunPodSettings(disk_gb=108))
    with pytest.raises(UsageError) as caught:
        check_disk(a_plan(), small, BIG_BYTES)
    assert caught.value.code == "disk_too_small"
    assert "disk_gb" in caught.value.hint
    check_disk(a_plan(), small, None)
    check_disk(a_plan(), Settings(), BIG_BYTES)
    with pytest.raises(UsageError):
        check_disk(a_plan(), Settings(), 10**13)


def test_the_size_of_a_model_folder_is_that_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "notes.txt").write_bytes(b"x" * 5000)
    assert model_size(a_plan(), tmp_path) == 1000


def test_a_hub_that_does_not_answer_leaves_the_size_unknown() -> None:
    assert hub.hub_bytes("owner/model", "0" * 40, endpoint="http://127.0.0.1:9") is None


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
