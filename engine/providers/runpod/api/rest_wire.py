"""The messages of REST v2, as far as they are used: types are checked strictly, other fields are ignored."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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


class Created(_Wire, frozen=True):
    """The part of the answer to `POST /pods` that is used."""

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
    """An error as in RFC 9457."""

    detail: str = ""
    errors: tuple[str, ...] = ()


class _LogEvent(_Wire, frozen=True):
    line: str


def pod(row: _Pod, date: str | None = None) -> Pod:
    """One row of the listing. `date`: the answer's `Date`, RunPod's own clock, to which `createdAt` is compared."""
    status = _STATUSES.get(row.status, "error")
    runtime = row.runtime or _Runtime()
    ports = [port for port in runtime.ports or () if port.public is not None]
    return Pod(
        id=row.id,
        name=row.name,
        status=status,
        price_per_hour=row.cost,
        gpu_model=row.gpu.id if row.gpu else None,
        gpu_count=row.gpu.count if row.gpu else None,
        created_at=_utc(row.created_at),
        age_sec=_age(row.created_at, date),
        has_runtime=status == "running" or runtime.uptime is not None or bool(ports),
        has_ports=bool(ports),
        ssh=_address(row.ssh.direct if row.ssh else None),
    )


def offer(row: _GpuType) -> GpuOffer:
    """One type of GPU."""
    return GpuOffer(
        id=row.id,
        name=row.name,
        memory_gb=row.memory,
        secure_price=row.price.secure if row.secure else None,
        community_price=row.price.community if row.community else None,
        stock=_STOCK.get(row.availability or ""),
    )


def request(order: Order) -> dict[str, Any]:
    """The CreatePodRequest. `startSsh` adds the account's SSH keys unless the environment sets `PUBLIC_KEY`."""
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
    """The text of an error answer; empty if it cannot be read."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    return "; ".join(filter(None, (problem.detail, *problem.errors)))


def log_line(line: bytes) -> str:
    """The text of one `data:` line of the log's events; empty for any other line."""
    if not line.startswith(b"data:"):
        return ""
    try:
        return msgspec.json.decode(line[5:], type=_LogEvent).line
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


def _utc(text: str | None) -> str | None:
    """A time in UTC in this program's format; None if it is invalid or has no time zone."""
    try:
        moment = datetime.fromisoformat(text or "")
        return None if moment.tzinfo is None else utc_text(moment.astimezone(UTC))
    except (ValueError, OverflowError):
        return None


def _age(created: str | None, date: str | None) -> float | None:
    """Seconds between two times of RunPod; None if one is missing or not valid."""
    try:
        since = parsedate_to_datetime(date or "") - datetime.fromisoformat(created or "")
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, since.total_seconds())


def _address(endpoint: _Endpoint | None) -> Address | None:
    """The address of the SSH server; None if there is none or it is invalid."""
    if endpoint is None or not 0 < endpoint.port < 65536:
        return None
    if not HOST.fullmatch(endpoint.host) or not _USER.fullmatch(endpoint.username):
        return None
    return Address(host=endpoint.host, port=endpoint.port, user=endpoint.username)
