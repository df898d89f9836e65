"""Which GPUs are acceptable now, at which price."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

from engine.errors import ProviderError
from engine.providers.protocol import Spec
from engine.providers.runpod.api.protocol import GpuOffer
from engine.providers.settings import RunPodSettings

ROUNDING: Final = 0.001
"""USD per hour by which a price may exceed the quote: the two APIs round differently."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One acceptable GPU with its price in USD per hour."""

    gpu: str
    model: str
    price: float


def above_quote(pod_id: str, price: float, quoted: float) -> ProviderError | None:
    """The error for a pod that costs more than was quoted, both in USD per hour; None if it does not."""
    if price <= quoted + ROUNDING:
        return None
    return ProviderError(
        f"Pod {pod_id} costs ${price:.2f} an hour, but ${quoted:.2f} was quoted; it is not kept.",
        "Raise --max-price, or accept another GPU.",
        code="price_above_quote",
    )


def max_price(spec: Spec, settings: RunPodSettings) -> float | None:
    """The ceiling in USD per hour: the plan's, else the settings'."""
    return settings.max_price if spec.max_price is None else spec.max_price


def lifetime(spec: Spec, settings: RunPodSettings, price: float) -> float:
    """Seconds that an allocation at `price` may live: the time limit, or less if the cost ceiling pays for less."""
    cost = settings.max_cost if spec.max_cost is None else spec.max_cost
    if cost is None or price <= 0:
        return spec.max_seconds
    return min(spec.max_seconds, cost / price * 3600.0)


def choices(offers: Sequence[GpuOffer], spec: Spec, settings: RunPodSettings) -> tuple[Choice, ...]:
    """The acceptable GPUs in order of preference that are offered, within the ceiling and not known to be out of stock.

    Raises `ProviderError`: `no_acceptable_gpu`, `price_above_ceiling`, `no_capacity`.
    """
    acceptable = spec.gpus or settings.gpus
    known = named(offers, acceptable)
    priced = [(offer, price) for offer in known if (price := _price(offer, settings)) is not None]
    if not priced:
        raise none_acceptable(acceptable, bool(known), offers, settings)
    ceiling = max_price(spec, settings)
    affordable = [(offer, price) for offer, price in priced if ceiling is None or price <= ceiling]
    if not affordable:
        offer, price = min(priced, key=lambda one: one[1])
        raise ProviderError(
            f"The cheapest acceptable GPU, {offer.name}, costs ${price:.2f} an hour; the ceiling is ${ceiling:.2f}.",
            "Raise --max-price, or accept a cheaper GPU.",
            code="price_above_ceiling",
        )
    available = [(offer, price) for offer, price in affordable if offer.stock != "none"]
    if not available:
        names = ", ".join(offer.name for offer, _ in affordable)
        raise ProviderError(
            f"RunPod has no {names} available.", "Try again later, or accept another GPU.", code="no_capacity"
        )
    return tuple(dict.fromkeys(Choice(gpu=offer.id, model=offer.name, price=price) for offer, price in available))


def named(offers: Sequence[GpuOffer], names: Sequence[str]) -> list[GpuOffer]:
    """The offers with these names or ids, in the order of the names."""
    return [offer for name in names for offer in offers if name.casefold() in _names(offer)]


def _names(offer: GpuOffer) -> set[str]:
    return {offer.id.casefold(), offer.name.casefold()}


def _price(offer: GpuOffer, settings: RunPodSettings) -> float | None:
    price = offer.secure_price if settings.cloud == "SECURE" else offer.community_price
    return price if price is not None and price > 0 else None


def none_acceptable(
    acceptable: Sequence[str], exist: bool, offers: Sequence[GpuOffer], settings: RunPodSettings
) -> ProviderError:
    """The error that names what RunPod offers instead, the closest names first. `exist`: they are known, unpriced."""
    offered = closest_first(acceptable, {offer.name for offer in offers if _price(offer, settings) is not None})
    names = f"; it has: {', '.join(offered)}" if offered else ", and offers none at all now"
    if not acceptable:
        message = f"No acceptable GPU is named in the plan or in config.toml{names}."
    elif exist:
        message = f"The {settings.cloud.lower()} cloud does not offer {', '.join(acceptable)}{names}."
    else:
        message = f"RunPod has no GPU called {', '.join(acceptable)}{names}."
    hint = f'Give --gpu "{offered[0]}", or another of these names.' if offered else "Try again later."
    return ProviderError(message, hint, code="no_acceptable_gpu")


def closest_first(named: Sequence[str], offered: Iterable[str]) -> list[str]:
    """The offered names, those first that resemble a requested one most: `H100` is a part of `H100 PCIe`."""
    return sorted(offered, key=lambda name: (-max((_likeness(one, name) for one in named), default=0.0), name))


def _likeness(requested: str, name: str) -> float:
    """From 0 to 2; a name that contains every requested word, or is contained in it, is above 1."""
    wanted, found = requested.casefold(), name.casefold()
    contains = all(word in found for word in wanted.split()) or found in wanted
    return float(contains) + SequenceMatcher(None, wanted, found).ratio()
