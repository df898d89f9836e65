"""What a run needs of a provider: disk, time, ceilings and host, from its plan and the operator's settings."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Final

from engine.plan import Plan, longest_seconds
from engine.providers.protocol import Quote, Spec
from engine.providers.settings import Settings, host_settings
from engine.store.salt import salt_of

ENVIRONMENT_GB: Final = 28
"""Wheels and installation of a CUDA build of torch with its dependencies, and room for logs and adapters."""
WEIGHTS_GB: Final = {"Qwen/Qwen2.5-0.5B-Instruct": 1, "Qwen/Qwen2.5-7B-Instruct": 16}
UNKNOWN_WEIGHTS_GB: Final = 40
SCRATCH_GB: Final = 4
"""Sealed package of the data, adapters, logs."""
LARGEST_DISK_GB: Final = 2000
"""More than this is not ordered, whatever the model."""
WEIGHTS_MARGIN: Final = 1.1
"""A download that was cut off may leave a part beside the whole file."""


def spec_for(home: Path, plan: Plan, settings: Settings, name: str, weights_bytes: int | None = None) -> Spec:
    """What to acquire for a plan under this name. The plan's values take precedence over the settings'.

    `weights_bytes`: what the model's weights take on the allocation's disk, None if that is unknown.
    """
    request, defaults = plan.provider, settings.runpod
    return Spec(
        name=name,
        gpus=request.gpus or defaults.gpus,
        host=host_in(home, settings, request.allocation) if request.name == "static" else None,
        max_price=request.max_price if request.max_price is not None else defaults.max_price,
        max_cost=request.max_cost if request.max_cost is not None else defaults.max_cost,
        disk_gb=defaults.disk_gb or disk_gb(plan, weights_bytes),
        max_seconds=longest_seconds(plan) + (plan.provider.keep_for or 0) * 60.0,
    )


def most_it_costs(quote: Quote, spec: Spec) -> float:
    """The most that an allocation can cost in USD before it terminates itself."""
    by_time = quote.price_per_hour * spec.max_seconds / 3600
    return by_time if spec.max_cost is None else min(by_time, spec.max_cost)


def disk_gb(plan: Plan, weights_bytes: int | None) -> int:
    """The disk to order, in GB: environment, scratch, and the model's weights as often as they are stored there.

    For a hub model of unknown size, two copies of `UNKNOWN_WEIGHTS_GB` are assumed.
    """
    if weights_bytes is not None:
        weights = max(1, math.ceil(weights_bytes * WEIGHTS_MARGIN / 1e9))
    else:
        weights = 2 * (WEIGHTS_GB.get(plan.model.name, UNKNOWN_WEIGHTS_GB) if plan.model.source == "hub" else 2)
    return ENVIRONMENT_GB + SCRATCH_GB + weights


_LENGTH: Final = 16


def published_name(home: Path, name: str) -> str:
    """The name of a host in plans: the same for all runs of this home, and meaningless to others.

    Raises `StoreError` as `salt_of`.
    """
    return "host-" + hashlib.sha256(salt_of(home) + name.encode()).hexdigest()[:_LENGTH]


def host_in(home: Path, settings: Settings, published: str | None) -> str | None:
    """The name in the settings for a published host name; a name from the settings is returned as it is, as is None."""
    names = [*(host.name for host in settings.host), *(fault.name for fault in settings.faults)]
    if published is None or published in names:
        return published
    return next((name for name in names if published_name(home, name) == published), published)


def chosen_host(home: Path, settings: Settings, host: str | None) -> str:
    """The published name of a host in the settings; None selects the only one.

    Raises `UsageError` as `host_settings`.
    """
    return published_name(home, host_settings(settings, host).name)
