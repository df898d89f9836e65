"""What the ledger keeps with an allocation: its lease, and the deadlines at which it is terminated."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.providers.protocol import Lease
from engine.store.deadline import Deadline
from engine.store.ledger import AllocationFields
from engine.store.views import AllocationView


def lease_of(entry: AllocationView) -> Lease | None:
    """The lease of a ledger entry, None while only the intent is known."""
    return None if entry.lease is None else msgspec.convert(entry.lease, Lease)


def with_lease(lease: Lease) -> AllocationFields:
    """The ledger fields that a lease provides."""
    known = AllocationFields(provider_id=lease.allocation_id, lease=msgspec.to_builtins(lease))
    if lease.gpu_model:
        known["gpu_model"] = lease.gpu_model
    if lease.price_per_hour is not None:
        known["price_per_hour"] = lease.price_per_hour
    if lease.deadline is not None:
        known["deadline"] = Deadline.of(lease.deadline)
    return known


def with_intent(seconds: float) -> AllocationFields:
    """The only field that is known before an allocation is requested: the latest end of its life."""
    return AllocationFields(intended_until=Deadline.after(seconds))


def with_end(seconds: float) -> AllocationFields:
    """An allocation that is to be terminated this many seconds from now, whatever its lease will say."""
    return AllocationFields(deadline=Deadline.after(seconds))


def with_keep(entry: AllocationView, minutes: int) -> AllocationFields:
    """An allocation that is kept for this many minutes from now, but not beyond its own deadline."""
    moment = Deadline.after(minutes * 60.0)
    if entry.deadline is not None and entry.deadline.left() < moment.left():
        moment = entry.deadline
    return AllocationFields(keep_until=moment)


def matching(entries: Sequence[AllocationView], query: str) -> list[AllocationView]:
    """The entries with this id, name or provider's id; if there are none, those whose id begins with it."""
    exact = [entry for entry in entries if query in {entry.id, entry.name, entry.provider_id}]
    return exact or [entry for entry in entries if entry.id.startswith(query)]
