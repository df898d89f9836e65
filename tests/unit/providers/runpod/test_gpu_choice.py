"""Which GPU is requested: the order of preference, the cloud, the ceiling and the stock."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import ProviderError
from engine.providers.protocol import Spec
from engine.providers.runpod.api.protocol import SAFE, GpuOffer
from engine.providers.runpod.gpu_choice import choices, closest_first, lifetime
from engine.providers.runpod.pod_order import START
from engine.providers.settings import RunPodSettings

A = GpuOffer(id="NVIDIA A100 80GB PCIe", name="A100 PCIe", memory_gb=80, secure_price=1.64, community_price=1.19)
H = GpuOffer(id="NVIDIA H100 80GB HBM3", name="H100 SXM", memory_gb=80, secure_price=2.99, community_price=None)
NONE = GpuOffer(id="NVIDIA H200", name="H200 SXM", memory_gb=141, secure_price=3.99, community_price=None, stock="none")


def chosen(*gpus: str, max_price: float | None = None, **settings: Any) -> list[str]:
    spec = Spec(name="n", gpus=gpus, max_price=max_price)
    return [choice.model for choice in choices((A, H, NONE), spec, RunPodSettings(**settings))]


def test_the_order_of_preference_decides_by_id_or_name_in_any_case() -> None:
    assert chosen("h100 sxm", "NVIDIA A100 80gb pcie", "H100 SXM") == ["H100 SXM", "A100 PCIe"]


def test_the_settings_name_the_gpus_where_the_plan_names_none() -> None:
    assert chosen(gpus=("A100 PCIe",)) == ["A100 PCIe"]


def test_gpus_above_the_ceiling_or_out_of_stock_are_not_requested() -> None:
    assert chosen("H200 SXM", "H100 SXM", "A100 PCIe", max_price=2.0) == ["A100 PCIe"]
    assert chosen("H200 SXM", "A100 PCIe", max_price=2.0) == ["A100 PCIe"]
    assert chosen("H200 SXM", "H100 SXM") == ["H100 SXM"]


@pytest.mark.parametrize(
    ("gpus", "ceiling", "code", "expected"),
    [
        ((), None, "no_acceptable_gpu", ["A100 PCIe", "H100 SXM"]),
        (("B200",), None, "no_acceptable_gpu", ["B200", "A100 PCIe"]),
        (("H100 SXM", "A100 PCIe"), 1.0, "price_above_ceiling", ["A100 PCIe", "$1.64", "$1.00"]),
        (("H200 SXM",), None, "no_capacity", ["H200 SXM"]),
    ],
)
def test_a_refusal_names_the_alternatives(
    gpus: tuple[str, ...], ceiling: float | None, code: str, expected: list[str]
) -> None:
    with pytest.raises(ProviderError) as raised:
        chosen(*gpus, max_price=ceiling)
    assert raised.value.code == code
    assert all(part in f"{raised.value.message} {raised.value.hint}" for part in expected)


def test_a_gpu_that_the_cloud_lacks_is_not_acceptable() -> None:
    with pytest.raises(ProviderError) as raised:
        chosen("H100 SXM", cloud="COMMUNITY")
    assert raised.value.code == "no_acceptable_gpu"
    assert chosen("H100 SXM", "A100 PCIe", cloud="COMMUNITY") == ["A100 PCIe"]


def test_the_cost_ceiling_limits_the_lifetime() -> None:
    spec = Spec(name="n", max_cost=6.0, max_seconds=86_400)
    assert lifetime(spec, RunPodSettings(), 3.0) == 7200
    assert lifetime(Spec(name="n", max_seconds=60), RunPodSettings(max_cost=6.0), 3.0) == 60


def test_the_start_command_needs_no_escaping_in_graphql() -> None:
    assert not set('"\\\n') & set(START)
    assert SAFE.fullmatch(START) is None, "it is not checked by this rule but by one of its own"


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
