"""A lease from the record and the listing; creating it again gives the same lease."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from engine.providers.protocol import ExistingAllocation, Lease, Observation
from engine.providers.runpod.api.protocol import Pod, PodStatus
from engine.providers.runpod.folder import AllocationFolder, CreateRecord, CreateRequest
from engine.providers.runpod.pod_order import HEARTBEAT
from engine.providers.settings import RunPodSettings
from engine.system.clock import BootTime
from engine.wire import utc_now, utc_text

NAME: Final = "runpod"
_STOPPED: Final[frozenset[PodStatus]] = frozenset({"exited", "error", "terminated"})


def observation(pod: Pod) -> Observation:
    """A listed pod's state: it exists, so it is never `gone`."""
    return "stopped" if pod.status in _STOPPED else "alive"


def lease_of(pod: Pod, folder: AllocationFolder, record: CreateRecord | None, settings: RunPodSettings) -> Lease:
    """The pod's lease, without an address.

    Where its keys are missing here, `machine` lacks `hostKey`: such a lease can be released, but not made ready.
    """
    request = record.open if record is not None else None
    since = request.requested_at if request is not None else pod.created_at or utc_now()
    passed = None if request is None else age(request)
    passed = pod.age_sec if passed is None else passed
    machine = {"podId": pod.id}
    if pod.machine_id:
        machine["machineId"] = pod.machine_id
    if (host_key := folder.host_key()) is not None:
        machine["hostKey"] = host_key.get_fingerprint()
    return Lease(
        allocation_id=pod.id,
        provider=NAME,
        name=folder.name,
        run_id=record.run_id if record is not None else "-".join(folder.name.split("-")[2:-1]),
        gpu_model=pod.gpu_model or (request.gpu_model if request is not None else None),
        price_per_hour=pod.price_per_hour or (request.price_per_hour if request is not None else None),
        acquired_at=since,
        root=settings.root,
        python=settings.python,
        site_paths=settings.site,
        machine=machine,
        environment=settings.environment,
        index=settings.index,
        heartbeat=HEARTBEAT,
        deadline=_after(since, request.seconds) if request is not None else None,
        lifetime=request.seconds if request is not None else None,
        left=request.seconds - passed if request is not None and passed is not None else None,
    )


def existing(pod: Pod, lease: Lease | None = None) -> ExistingAllocation:
    """A listed pod as an allocation, with its lease if it is ours."""
    return ExistingAllocation(
        name=pod.name,
        observation=observation(pod),
        lease=lease,
        allocation_id=pod.id,
        gpu_model=pod.gpu_model,
        price_per_hour=pod.price_per_hour,
        since=pod.created_at,
        age_sec=pod.age_sec,
    )


def age(request: CreateRequest) -> float | None:
    """Seconds since the request; None if this machine was restarted in between: a wall clock may have been set."""
    return BootTime(request.boot_id, request.requested_boot).until(BootTime.now())


def _after(moment: str, seconds: float) -> str:
    return utc_text(_time(moment) + timedelta(seconds=seconds))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
