"""What REST v2 says and is told, as far as it is used: strict about types, indifferent to what else is there."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec

from engine.providers.runpod.api.protocol import Address, GpuOffer, Order, Pod, PodStatus
from engine.wire import utc_text

_STATUSES: Final[dict[str, PodStatus]] = {
    "PROVISIONING": "provisioning",
    "STARTING": "starting",
    "RUNNING": "running",
    "EXITED": "exited",
    "ERROR": "error",
    "TERMINATED": "terminated",
}
_STOCK: Final[dict[str, Literal["none", "low", "medium", "high"]]] = {
    "NONE": "none",
    "LOW": "low",
    "MEDIUM": "medium",
    "HIGH": "high",
}
HOST: Final = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]{0,252}")
_USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
Price = Annotated[float, msgspec.Meta(ge=0)]


class _Wire(msgspec.Struct, frozen=True, rename="camel"):
    pass


class _Endpoint(_Wire, frozen=True):
    host: str
    port: int
    username: str = "root"


class _Ssh(_Wire, frozen=True):
    direct: _Endpoint | None = None


class _Port(_Wire, frozen=True):
    public: int | None = None


class _Runtime(_Wire, frozen=True):
    uptime: float | None = None
    ports: tuple[_Port, ...] | None = None


class _Gpu(_Wire, frozen=True):
    id: str
    count: int = 1


class _Pod(_Wire, frozen=True):
    id: str
    name: str
    status: str
    cost: Price | None = None
    created_at: str | None = None
    gpu: _Gpu | None = None
    ssh: _Ssh | None = None
    runtime: _Runtime | None = None


class Pods(_Wire, frozen=True):
    """The answer to `GET /pods`."""

    pods: tuple[_Pod, ...]


class Made(_Wire, frozen=True):
    """What counts of the answer to `POST /pods`."""

    id: str


class _Prices(_Wire, frozen=True):
    secure: Price | None = None
    community: Price | None = None


class _GpuType(_Wire, frozen=True):
    id: str
    name: str
    memory: int
    secure: bool
    community: bool
    price: _Prices
    availability: str | None = None


class Gpus(_Wire, frozen=True):
    """The answer to `GET /catalog/gpus`."""

    gpus: tuple[_GpuType, ...]


class _Problem(_Wire, frozen=True):
    """RFC 9457."""

    detail: str = ""
    errors: tuple[str, ...] = ()


class _LogEvent(_Wire, frozen=True):
    line: str


def pod(found: _Pod) -> Pod:
    """One row of the listing."""
    status = _STATUSES.get(found.status, "error")
    runtime = found.runtime or _Runtime()
    ports = [port for port in runtime.ports or () if port.public is not None]
    return Pod(
        id=found.id,
        name=found.name,
        status=status,
        price_per_hour=found.cost,
        gpu_model=found.gpu.id if found.gpu else None,
        gpu_count=found.gpu.count if found.gpu else None,
        created_at=_moment(found.created_at),
        has_runtime=status == "running" or runtime.uptime is not None or bool(ports),
        has_ports=bool(ports),
        ssh=_address(found.ssh.direct if found.ssh else None),
    )


def offer(found: _GpuType) -> GpuOffer:
    """One type of GPU."""
    return GpuOffer(
        id=found.id,
        name=found.name,
        memory_gb=found.memory,
        secure_price=found.price.secure if found.secure else None,
        community_price=found.price.community if found.community else None,
        stock=_STOCK.get(found.availability or ""),
    )


def request(order: Order) -> dict[str, Any]:
    """The CreatePodRequest. `startSsh` would add the account's keys, did the environment not set `PUBLIC_KEY`."""
    return {
        "name": order.name,
        "image": order.image,
        "args": order.start,
        "gpu": {"id": order.gpu, "count": 1, **({"minCudaVersion": order.min_cuda} if order.min_cuda else {})},
        "cloud": order.cloud,
        "disk": order.disk_gb,
        "ports": ["22/tcp"],
        "env": order.environment,
        "startSsh": True,
    }


def detail(body: bytes) -> str:
    """What an error says of itself; empty where it cannot be read."""
    try:
        found = msgspec.json.decode(body, type=_Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return "; ".join(filter(None, (found.detail, *found.errors)))


def log_line(line: bytes) -> str:
    """The text of one `data:` line of the log's events; empty for any other line."""
    if not line.startswith(b"data:"):
        return ""
    try:
        return msgspec.json.decode(line[5:], type=_LogEvent).line
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def _moment(text: str | None) -> str | None:
    """A time in UTC as ours are written; None for what is none or lacks its zone."""
    try:
        found = datetime.fromisoformat(text or "")
        return None if found.tzinfo is None else utc_text(found.astimezone(UTC))
    except (ValueError, OverflowError):
        return None


def _address(found: _Endpoint | None) -> Address | None:
    """Where SSH answers; None for what is no address."""
    if found is None or not 0 < found.port < 65536:
        return None
    if not HOST.fullmatch(found.host) or not _USER.fullmatch(found.username):
        return None
    return Address(host=found.host, port=found.port, user=found.username)
