"""The names that an operator may give, told when the one given does not exist."""

from __future__ import annotations

import pytest

from engine.errors import ProviderError
from engine.providers.protocol import Spec
from engine.providers.runpod.api.protocol import GpuOffer
from engine.providers.runpod.gpu_choice import choices, closest_first
from engine.providers.settings import RunPodSettings

NAMES = ("A100 PCIe", "B200", "H100 NVL", "H100 PCIe", "H100 SXM", "RTX 4090", "RTX A4000")


def offers(*names: str) -> list[GpuOffer]:
    return [
        GpuOffer(id=f"NVIDIA {name}", name=name, memory_gb=24, secure_price=1.0, community_price=None, stock="high")
        for name in names
    ]


def refusal(gpu: str, *names: str) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        choices(offers(*names), Spec(name="a", gpus=(gpu,)), RunPodSettings())
    assert caught.value.code == "no_acceptable_gpu"
    return caught.value


def test_the_valid_names_are_in_the_sentence_with_the_closest_first() -> None:
    error = refusal("H100", *NAMES)
    assert error.message.startswith("RunPod has no GPU called H100; it has: H100 ")
    assert all(name in error.message for name in NAMES)
    assert error.hint == 'Give --gpu "H100 NVL", or another of these names.'


@pytest.mark.parametrize(
    ("given", "first"),
    [("h100 sxm5", "H100 SXM"), ("4090", "RTX 4090"), ("A4000", "RTX A4000"), ("nvidia rtx 4090", "RTX 4090")],
)
def test_a_part_or_a_misspelling_leads_to_the_name(given: str, first: str) -> None:
    assert closest_first((given,), NAMES)[0] == first


def test_no_offer_at_all_says_so() -> None:
    error = refusal("H100")
    assert error.message == "RunPod has no GPU called H100, and offers none at all now."
    assert error.hint == "Try again later."
