"""The interface to RunPod: five calls, their records and their errors. Nothing else of RunPod is used.

Every call has its own deadline. An answer that cannot be read is an error, never an empty list.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, Protocol

import msgspec

from engine.errors import ProviderError

PodStatus = Literal["provisioning", "starting", "running", "exited", "error", "terminated"]
"""An unknown status counts as `error`: the pod exists and cannot be used."""
SAFE: Final = re.compile(r"[A-Za-z0-9+/=_.:@ -]*")
"""The characters of a value that the SDK puts into GraphQL unescaped; anything else must be base64-encoded first."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Address(_Record, frozen=True, kw_only=True):
    """Where port 22 of a pod can be reached directly."""

    host: str
    port: int
    user: str = "root"


class Pod(_Record, frozen=True, kw_only=True):
    """One listed pod. `price_per_hour` in USD, None if it is not reported. The environment has secrets and is left out.

    `created_at` is RunPod's time; `age_sec` the time since then by RunPod's own clock, None if either is not reported.
    `has_runtime`: the container runs (its image is pulled). `ssh` is None until a public port is assigned; `has_ports`
    is true once any port is assigned.
    """

    id: str
    name: str
    status: PodStatus
    price_per_hour: float | None = None
    gpu_model: str | None = None
    gpu_count: int | None = None
    machine_id: str | None = None
    created_at: str | None = None
    age_sec: float | None = None
    has_runtime: bool = False
    has_ports: bool = False
    ssh: Address | None = None


class GpuOffer(_Record, frozen=True, kw_only=True):
    """One type of GPU. Prices in USD per hour, None if that cloud does not offer it; `stock` None if not reported."""

    id: str
    name: str
    memory_gb: int
    secure_price: float | None
    community_price: float | None
    stock: Literal["none", "low", "medium", "high"] | None = None


class Order(_Record, frozen=True, kw_only=True):
    """One pod to create: one GPU, 22/tcp open. `environment` holds secrets; `start` replaces the image's command.

    `min_cuda`: the CUDA version that the machine's driver must at least support, as `major.minor`.
    """

    name: str
    image: str
    gpu: str
    cloud: Literal["SECURE", "COMMUNITY"]
    disk_gb: int
    environment: dict[str, str]
    start: str
    min_cuda: str | None = None

    def __repr__(self) -> str:
        return f"Order(name={self.name!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("name", self.name)]


class PodApi(Protocol):
    """RunPod as this project uses it.

    Codes of `ProviderError`: `api_key_missing`, `api_key_rejected` (401, 403), `api_rate_limited` (429; `retry_after`
    seconds), `api_gone` (410), `no_capacity`, `no_balance` (402), `order_refused` (the request itself was refused, so
    nothing was created), `api_unavailable` (unreachable, 5xx), `api_timeout`, `api_answer_invalid`. After
    `create_pod` the last three, and a rate limit, do not tell whether a pod was created: see `is_ambiguous`.
    """

    @property
    def name(self) -> str:
        """`rest` or `sdk`."""
        ...

    def account(self, salt: bytes) -> str:
        """A keyed digest of server, API key and implementation: the home's shared caches are kept apart by it."""
        ...

    async def list_pods(self) -> tuple[Pod, ...]:
        """Every pod of the account. A listed pod exists, even an `exited` one: its disk bills."""
        ...

    async def list_gpus(self) -> tuple[GpuOffer, ...]:
        """The types of GPU with their prices."""
        ...

    async def create_pod(self, order: Order) -> str:
        """Request a pod, once; returns its id."""
        ...

    async def terminate_pod(self, pod_id: str) -> bool:
        """Request termination of a pod. Success proves nothing: only later listings do.

        False if RunPod does not know the pod, which may be true or an error of the moment.
        """
        ...

    async def fingerprints(self, pod_id: str) -> frozenset[str] | None:
        """The SHA256 host key fingerprints that the pod's image printed; None if its log cannot be read."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class RateLimitedError(ProviderError):
    """RunPod requests a pause of `retry_after` seconds."""

    default_code = "api_rate_limited"

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            f"RunPod requests a pause of {retry_after:.0f} s.",
            "Wait that long, then try again.",
            code="api_rate_limited",
        )
        self.retry_after = retry_after


AMBIGUOUS: Final = frozenset({"api_unavailable", "api_timeout", "api_answer_invalid"})


def is_ambiguous(error: ProviderError) -> bool:
    """True when a creation that failed with this error may still have created a pod."""
    return error.code in AMBIGUOUS
