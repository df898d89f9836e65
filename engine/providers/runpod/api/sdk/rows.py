"""GraphQL's answers through RunPod's SDK, as far as they are used: types are strict, other fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from engine.providers.runpod.api.protocol import Address, GpuOffer, Pod, PodStatus
from engine.providers.runpod.api.rest_wire import HOST

GPU_QUERY: Final = """
query GpuTypes {
  gpuTypes {
    id
    displayName
    memoryInGb
    secureCloud
    communityCloud
    securePrice
    communityPrice
  }
}
"""
_SSH: Final = 22
_ENDED: Final[dict[str, PodStatus]] = {
    "EXITED": "exited",
    "PAUSED": "exited",
    "DEAD": "error",
    "TERMINATED": "terminated",
}
_ACTIVE: Final = frozenset({"CREATED", "RUNNING", "RESTARTING"})
Price = Annotated[float, msgspec.Meta(ge=0)]


class _Row(msgspec.Struct, frozen=True, rename="camel"):
    pass


class GraphqlError(msgspec.Struct, frozen=True):
    """One entry of `errors`."""

    message: str
    extensions: dict[str, Any] = {}  # msgspec copies it


class Created(_Row, frozen=True):
    """The part of the answer to a creation that is used."""

    id: str


class _Port(_Row, frozen=True):
    ip: str | None = None
    is_ip_public: bool | None = None
    private_port: int | None = None
    public_port: int | None = None
    type: str | None = None


class _Runtime(_Row, frozen=True):
    ports: tuple[_Port, ...] | None = None


class _Machine(_Row, frozen=True):
    gpu_display_name: str | None = None


class PodRow(_Row, frozen=True):
    """One row of `get_pods()`; its environment is not read."""

    id: str
    name: str
    desired_status: str
    cost_per_hr: Price | None = None
    gpu_count: int | None = None
    machine_id: str | None = None
    machine: _Machine | None = None
    runtime: _Runtime | None = None


class GpuRow(_Row, frozen=True):
    """One type of GPU."""

    id: str
    display_name: str
    memory_in_gb: int
    secure_cloud: bool | None = None
    community_cloud: bool | None = None
    secure_price: Price | None = None
    community_price: Price | None = None


def pod(row: PodRow) -> Pod:
    """One pod. `desiredStatus` is only the target state; `runtime` shows how far the pod has come."""
    ports = (row.runtime.ports if row.runtime else None) or ()
    address = next(filter(None, map(_address, ports)), None)
    status = _ENDED.get(row.desired_status, "error")
    if row.desired_status in _ACTIVE:
        status = "provisioning" if row.runtime is None else "running" if address else "starting"
    return Pod(
        id=row.id,
        name=row.name,
        status=status,
        price_per_hour=row.cost_per_hr,
        gpu_model=row.machine.gpu_display_name if row.machine else None,
        gpu_count=row.gpu_count,
        machine_id=row.machine_id,
        has_runtime=row.runtime is not None,
        has_ports=bool(ports),
        ssh=address,
    )


def offer(row: GpuRow) -> GpuOffer:
    """One type of GPU; its stock is not reported."""
    return GpuOffer(
        id=row.id,
        name=row.display_name,
        memory_gb=row.memory_in_gb,
        secure_price=row.secure_price if row.secure_cloud else None,
        community_price=row.community_price if row.community_cloud else None,
    )


def _address(port: _Port) -> Address | None:
    if (port.private_port, port.type, port.is_ip_public) != (_SSH, "tcp", True):
        return None
    if port.ip is None or port.public_port is None or not 0 < port.public_port < 65536 or not HOST.fullmatch(port.ip):
        return None
    return Address(host=port.ip, port=port.public_port)
