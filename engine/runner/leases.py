"""What the ledger keeps with an allocation: its lease, and the deadlines at which it is terminated."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.providers.protocol import ExistingAllocation, Lease
from engine.store.deadline import Deadline, Listed
from engine.store.ledger import AllocationFields
from engine.store.views import AllocationView


def lease_of(entry: AllocationView) -> Lease | None:
    """The lease of a ledger entry, None while only the intent is known."""
    # What was left when the lease was stored is not left any more.
    return None if entry.lease is None else msgspec.structs.replace(msgspec.convert(entry.lease, Lease), left=None)


def with_lease(lease: Lease) -> AllocationFields:
    """The ledger fields that a lease provides."""
    known = AllocationFields(provider_id=lease.allocation_id, lease=msgspec.to_builtins(lease))
    if lease.gpu_model:
        known["gpu_model"] = lease.gpu_model
    if lease.price_per_hour is not None:
        known["price_per_hour"] = lease.price_per_hour
    if lease.left is not None:
        known["deadline"] = Deadline.after(lease.left, lease.lifetime)
    elif lease.deadline is not None:
        known["deadline"] = Deadline(utc=lease.deadline, life=lease.lifetime)
    return known


def with_listing(entry: AllocationView, found: ExistingAllocation) -> AllocationFields:
    """What a provider's listing tells about an allocation of the ledger.

    After a restart of this machine its deadlines are counted again, by the age that the provider states.
    """
    known = AllocationFields()
    if found.allocation_id and entry.provider_id is None:
        known["provider_id"] = found.allocation_id
    if found.gpu_model and entry.gpu_model is None:
        known["gpu_model"] = found.gpu_model
    if found.price_per_hour is not None and entry.price_per_hour is None:
        known["price_per_hour"] = found.price_per_hour
    if found.age_sec is not None:
        known["listed"] = Listed.now(found.age_sec)
        for name in ("deadline", "keep_until", "intended_until"):
            moment: Deadline | None = getattr(entry, name)
            again = None if moment is None or moment.left() is not None else moment.by_age(found.age_sec)
            if again is not None:
                known[name] = again
    return known


def with_intent(seconds: float) -> AllocationFields:
    """The only field that is known before an allocation is requested: the latest end of its life."""
    return AllocationFields(intended_until=Deadline.after(seconds, seconds))


def with_end(seconds: float) -> AllocationFields:
    """An allocation that is to be terminated this many seconds from now, whatever its lease will say."""
    return AllocationFields(deadline=Deadline.after(seconds, seconds))


def with_keep(entry: AllocationView, minutes: int) -> AllocationFields:
    """An allocation that is kept for this many minutes from now, but not beyond its own deadline."""
    seconds = minutes * 60.0
    moment = Deadline.after(seconds, None if entry.age_sec is None else entry.age_sec + seconds)
    left = None if entry.deadline is None else entry.deadline.left()
    return AllocationFields(keep_until=entry.deadline if left is not None and left < seconds else moment)


def matching(entries: Sequence[AllocationView], query: str) -> list[AllocationView]:
    """The entries with this id, name or provider's id; if there are none, those whose id begins with it."""
    exact = [entry for entry in entries if query in {entry.id, entry.name, entry.provider_id}]
    return exact or [entry for entry in entries if entry.id.startswith(query)]
