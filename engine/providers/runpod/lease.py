"""A lease out of what was asked for and what is listed; the same whenever it is made."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from engine.providers.protocol import Found, Lease, Observation
from engine.providers.runpod.api.protocol import Pod, PodStatus
from engine.providers.runpod.folder import AllocationFolder, Ask, Asked
from engine.providers.runpod.pod_order import HEARTBEAT
from engine.providers.settings import RunPodSettings
from engine.system.clock import boot_id, boot_seconds
from engine.wire import utc_now, utc_text

NAME: Final = "runpod"
_STOPPED: Final[frozenset[PodStatus]] = frozenset({"exited", "error", "terminated"})


def observation(pod: Pod) -> Observation:
    """A listed pod's state: it exists, so it is never `gone`."""
    return "stopped" if pod.status in _STOPPED else "alive"


def lease_of(pod: Pod, folder: AllocationFolder, asked: Asked | None, settings: RunPodSettings) -> Lease:
    """The pod's lease, without an address.

    Where its keys are not here `machine` lacks `hostKey`: such a lease can be released, and `wait_ready` refuses it.
    """
    ask = asked.open if asked is not None else None
    since = ask.asked_at if ask is not None else pod.created_at or utc_now()
    machine = {"podId": pod.id}
    if pod.machine_id:
        machine["machineId"] = pod.machine_id
    if (host_key := folder.host_key()) is not None:
        machine["hostKey"] = host_key.get_fingerprint()
    return Lease(
        allocation_id=pod.id,
        provider=NAME,
        name=folder.name,
        run_id=asked.run_id if asked is not None else "-".join(folder.name.split("-")[2:-1]),
        gpu_model=pod.gpu_model or (ask.gpu_model if ask is not None else None),
        price_per_hour=pod.price_per_hour or (ask.price_per_hour if ask is not None else None),
        acquired_at=since,
        root=settings.root,
        python=settings.python,
        site_paths=settings.site,
        machine=machine,
        environment=settings.environment,
        index=settings.index,
        heartbeat=HEARTBEAT,
        deadline=_after(since, ask.seconds) if ask is not None else None,
    )


def found(pod: Pod, lease: Lease | None = None) -> Found:
    """What is listed of a pod; one of ours with its lease."""
    return Found(
        name=pod.name,
        observation=observation(pod),
        lease=lease,
        allocation_id=pod.id,
        gpu_model=pod.gpu_model,
        price_per_hour=pod.price_per_hour,
        since=pod.created_at,
    )


def age(ask: Ask) -> float:
    """Seconds since the asking; by the wall clock only where this machine was started anew since."""
    if ask.boot_id and ask.boot_id == boot_id():
        return boot_seconds() - ask.asked_boot
    return (_time(utc_now()) - _time(ask.asked_at)).total_seconds()


def _after(moment: str, seconds: float) -> str:
    return utc_text(_time(moment) + timedelta(seconds=seconds))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
