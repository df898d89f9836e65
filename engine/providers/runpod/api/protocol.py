"""The seam to RunPod: five calls, their records and their errors. Nothing else of RunPod is used.

Every call has its own deadline. An answer that cannot be read is an error, never an empty list.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, Protocol

import msgspec

from engine.errors import ProviderError

PodStatus = Literal["provisioning", "starting", "running", "exited", "error", "terminated"]
"""A status that this program does not know counts as `error`: the pod exists and cannot be used."""
SAFE: Final = re.compile(r"[A-Za-z0-9+/=_.:@ -]*")
"""What may stand in a value that goes into a GraphQL text; anything else is base64-encoded before."""


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Address(_Record, frozen=True, kw_only=True):
    """Where port 22 of a pod is reached directly."""

    host: str
    port: int
    user: str = "root"


class Pod(_Record, frozen=True, kw_only=True):
    """One listed pod. `price_per_hour` in USD, None where it is not told. Its environment has secrets and is not kept.

    `has_runtime`: the container runs (its image is pulled). `ssh` is None until a public port is assigned; `has_ports`
    tells whether any port is.
    """

    id: str
    name: str
    status: PodStatus
    price_per_hour: float | None = None
    gpu_model: str | None = None
    gpu_count: int | None = None
    machine_id: str | None = None
    created_at: str | None = None
    has_runtime: bool = False
    has_ports: bool = False
    ssh: Address | None = None


class GpuOffer(_Record, frozen=True, kw_only=True):
    """One type of GPU. Prices in USD an hour for one, None where that cloud does not offer it; so for `stock`."""

    id: str
    name: str
    memory_gb: int
    secure_price: float | None
    community_price: float | None
    stock: Literal["none", "low", "medium", "high"] | None = None


class Order(_Record, frozen=True, kw_only=True):
    """One pod to make: one GPU, 22/tcp open. `environment` holds secrets; `start` replaces the image's command.

    `min_cuda`: the oldest CUDA version that the machine's driver may know, as `major.minor`.
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
    nothing was made), `api_unavailable` (unreachable, 5xx), `api_timeout`, `api_answer_invalid`. After `create` the
    last three, and a rate limit, leave open whether a pod was made: see `is_ambiguous`.
    """

    @property
    def name(self) -> str:
        """`rest` or `sdk`."""
        ...

    def account(self, salt: bytes) -> str:
        """A keyed digest of server, API key and implementation: what one home shares is shared within it alone."""
        ...

    async def list_pods(self) -> tuple[Pod, ...]:
        """Every pod of the account. Whoever is listed exists, `exited` included: its disk bills."""
        ...

    async def list_gpus(self) -> tuple[GpuOffer, ...]:
        """The types of GPU with their prices."""
        ...

    async def create_pod(self, order: Order) -> str:
        """Ask for a pod once; returns its id."""
        ...

    async def terminate_pod(self, pod_id: str) -> None:
        """Ask to end a pod. No error proves nothing: only later listings do."""
        ...

    async def fingerprints(self, pod_id: str) -> frozenset[str] | None:
        """The SHA256 host key fingerprints that the pod's image printed; None where its log cannot be read."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class RateLimitedError(ProviderError):
    """RunPod asks to wait `retry_after` seconds."""

    default_code = "api_rate_limited"

    def __init__(self, retry_after: float) -> None:
        super().__init__(
            f"RunPod asks for a pause of {retry_after:.0f} s.", "It is waited for.", code="api_rate_limited"
        )
        self.retry_after = retry_after


AMBIGUOUS: Final = frozenset({"api_unavailable", "api_timeout", "api_answer_invalid"})


def is_ambiguous(error: ProviderError) -> bool:
    """True when a creation that failed so may have made a pod all the same."""
    return error.code in AMBIGUOUS
