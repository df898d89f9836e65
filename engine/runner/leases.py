"""What the ledger keeps with an allocation: its lease, and the deadlines at which it ends."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import msgspec

from engine.providers.protocol import Lease
from engine.store.ledger import AllocationFields
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.system.clock import boot_id, boot_seconds
from engine.wire import utc_text

_LEASE: Final = "lease"
_DEADLINE: Final = "deadline"
_KEEP: Final = "keepUntil"
_ASKED: Final = "askedUntil"


def lease_of(reader: Reader, allocation_id: str) -> Lease | None:
    """The lease of a ledger entry, None when only the intent was written."""
    kept = reader.allocation_detail(allocation_id).get(_LEASE)
    return None if kept is None else msgspec.convert(kept, Lease)


def ends_at(reader: Reader, allocation_id: str) -> Deadline | None:
    """When an allocation is to be ended whatever runs on it; None where nothing limits it."""
    return _moment(reader, allocation_id, _DEADLINE)


def kept_until(reader: Reader, allocation_id: str) -> Deadline | None:
    """When a kept allocation is to be ended; None for one that is not kept."""
    return _moment(reader, allocation_id, _KEEP)


def asked_until(reader: Reader, allocation_id: str) -> Deadline | None:
    """When one that nobody is at work on is to be ended although no lease says so; None for an older entry."""
    return _moment(reader, allocation_id, _ASKED)


def with_lease(reader: Reader, allocation_id: str, lease: Lease) -> AllocationFields:
    """What becomes known with a lease; a deadline that is known already stays."""
    detail = {**reader.allocation_detail(allocation_id), _LEASE: msgspec.to_builtins(lease)}
    if lease.deadline is not None and _DEADLINE not in detail:
        detail[_DEADLINE] = msgspec.to_builtins(Deadline.of(lease.deadline))
    known = AllocationFields(provider_id=lease.allocation_id, detail=detail)
    if lease.gpu_model:
        known["gpu_model"] = lease.gpu_model
    if lease.price_per_hour is not None:
        known["price_per_hour"] = lease.price_per_hour
    if lease.deadline is not None:
        known["deadline"] = lease.deadline
    return known


def with_asked(seconds: float) -> AllocationFields:
    """What is known before it is asked for: that it is to live no longer than so many seconds."""
    return AllocationFields(detail={_ASKED: msgspec.to_builtins(Deadline.after(seconds))})


def with_end(seconds: float) -> AllocationFields:
    """What becomes known when an allocation is to be ended so many seconds from now, whatever its lease will say."""
    moment = Deadline.after(seconds)
    return AllocationFields(deadline=moment.utc, detail={_DEADLINE: msgspec.to_builtins(moment)})


def with_keep(reader: Reader, allocation_id: str, minutes: int) -> AllocationFields:
    """What becomes known when an allocation is kept for so many minutes from now, its own end at the latest."""
    moment = Deadline.after(minutes * 60.0)
    end = ends_at(reader, allocation_id)
    if end is not None and end.left() < moment.left():
        moment = end
    detail = {**reader.allocation_detail(allocation_id), _KEEP: msgspec.to_builtins(moment)}
    return AllocationFields(keep_until=moment.utc, detail=detail)


def matching(entries: Sequence[AllocationView], wanted: str) -> list[AllocationView]:
    """The entries with this id, name or provider's id; where there is none, those whose id begins so."""
    exact = [one for one in entries if wanted in {one.id, one.name, one.provider_id}]
    return exact or [one for one in entries if one.id.startswith(wanted)]


def _moment(reader: Reader, allocation_id: str, name: str) -> Deadline | None:
    stored: Any = reader.allocation_detail(allocation_id).get(name)
    return None if stored is None else msgspec.convert(stored, Deadline)


class Deadline(msgspec.Struct, frozen=True, kw_only=True):
    """A moment: `utc` for people and for after a boot, `at` in seconds of the boot clock, which counts sleep too."""

    utc: str
    boot: str
    at: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """The moment `seconds` from now."""
        utc = datetime.now(UTC) + timedelta(seconds=seconds)
        return cls(utc=utc_text(utc), boot=boot_id(), at=boot_seconds() + seconds)

    @classmethod
    def of(cls, utc: str) -> Self:
        """The moment that a provider names in UTC."""
        return cls.after((datetime.fromisoformat(utc) - datetime.now(UTC)).total_seconds())

    def left(self) -> float:
        """Seconds until it comes; negative once it has."""
        if self.boot and self.boot == boot_id():
            return self.at - boot_seconds()
        return (datetime.fromisoformat(self.utc) - datetime.now(UTC)).total_seconds()
