"""What is rented: the ledger joined with the providers' listings, and foreign allocations, which are only shown."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine.allocations.returned import reopen_returned
from engine.errors import GlasshouseError, StoreError
from engine.plan import RENTED
from engine.providers import provider_for
from engine.providers.protocol import ExistingAllocation, LedgerEntry, Reconciliation
from engine.providers.settings import load_settings
from engine.runner.leases import lease_of, with_listing
from engine.runner.spawn import watch_on
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.wire import utc_now


class Listed(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One allocation: from the ledger, joined with its provider's listing; or a foreign one, which is only shown.

    `id` is the ledger's. `state` is the ledger's, or `foreign`. `observation` is None when the provider was not
    queried, or did not answer. Prices in USD, times in UTC. `since` is when it was requested, `listed_since` when the
    provider says that it was created. `age_sec` is by this machine's boot clock; after a restart of this machine, and
    for a foreign one, it is the provider's claim.
    """

    ours: bool
    id: str | None
    provider: str
    name: str
    allocation_id: str | None
    gpu_model: str | None
    state: str
    observation: str | None
    price_per_hour: float | None
    since: str | None
    age_sec: float | None
    listed_since: str | None
    spent: float | None
    run_id: str | None
    run_state: str | None
    keep_until: str | None
    deadline: str | None
    reason: str
    hint: str = ""
    """What to do about the failure in `reason`; empty if it is none."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A provider that could not be queried, and why; or, with `host`, a static host whose settings cannot be used."""

    provider: str
    code: str
    message: str
    hint: str
    host: str | None = None


class Overview(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Everything that is open, or foreign, at one moment; with `ended` also what is gone."""

    at: str
    allocations: tuple[Listed, ...]
    troubles: tuple[Trouble, ...]


def overview(home: Path, *, query: bool = True, ended: bool = False) -> Overview:
    """List allocations. `query`: ask the providers too, not only the ledger. `ended`: include those that are gone."""
    with Reader(home) as reader:
        entries = reader.allocations(open_only=not ended)
        listings, troubles = asyncio.run(_query(home, reader, entries)) if query else ({}, [])
        if query:
            listings = {name: reopen_returned(home, reader, name, listing) for name, listing in listings.items()}
            _record(home, reader.allocations(open_only=True), listings)
            entries = reader.allocations(open_only=not ended)
        listed = [_ours(entry, listings.get(entry.provider)) for entry in entries]
    foreign = [_foreign(provider, one) for provider, listing in listings.items() for one in listing.foreign]
    return Overview(at=utc_now(), allocations=(*listed, *foreign), troubles=(*troubles, *_hosts(home)))


def _hosts(home: Path) -> list[Trouble]:
    """The static hosts that cannot be used as they are configured; nothing is asked over the network."""
    try:
        settings = load_settings(home)
    except GlasshouseError:
        return []  # reported for every provider that was queried
    found: list[tuple[str, GlasshouseError]] = [(fault.name, fault.error()) for fault in settings.faults]
    for host in settings.host:
        from engine.providers.static.addresses import check_keys  # loads asyncssh, which is needed with a host only

        try:
            check_keys(host)
        except GlasshouseError as error:
            found.append((host.name, error))
    return [
        Trouble(provider="static", host=name or "?", code=error.code, message=error.message, hint=error.hint)
        for name, error in found
    ]


async def _query(
    home: Path, reader: Reader, entries: Sequence[AllocationView]
) -> tuple[dict[str, Reconciliation], list[Trouble]]:
    listings: dict[str, Reconciliation] = {}
    troubles: list[Trouble] = []
    looked_for = {one.provider for one in reader.looked_for()}
    for name in _providers(entries):
        mine = [
            LedgerEntry(name=one.name, lease=lease_of(one))
            for one in entries
            if one.provider == name and one.released_at is None
        ]
        try:
            provider = provider_for(name, home, load_settings(home))
            try:
                listings[name] = await provider.reconcile(mine)
                if mine or name in looked_for:
                    watch_on(home, name)
            finally:
                await provider.close()
        except GlasshouseError as error:
            if mine or error.code not in {"api_key_missing", "extra_missing"}:
                troubles.append(Trouble(provider=name, code=error.code, message=error.message, hint=error.hint))
    return listings, troubles


def _record(home: Path, entries: Sequence[AllocationView], listings: dict[str, Reconciliation]) -> None:
    """Add to the ledger what the listings know and it does not, so that it is shown whoever asks next."""
    known = [
        (entry.id, with_listing(entry, found))
        for entry in entries
        if entry.released_at is None and (found := _listed(entry, listings.get(entry.provider))) is not None
    ]
    if any(fields for _, fields in known):
        with contextlib.suppress(StoreError), Writer(home) as writer:  # a home that cannot be written is still shown
            for entry_id, fields in known:
                writer.allocation_known(entry_id, **fields)


def _listed(entry: AllocationView, listing: Reconciliation | None) -> ExistingAllocation | None:
    """What the listing shows under the entry's name or id: also for a creation whose answer never arrived.

    Of several allocations with one name, the price of all.
    """
    found = [] if listing is None else [one for one in listing.ours if one.name == entry.name]
    if not found and listing is not None and entry.provider_id is not None:
        found = [one for one in listing.ours if one.allocation_id == entry.provider_id]
    if len(found) < 2:
        return found[0] if found else None
    prices = [one.price_per_hour for one in found]
    total = None if None in prices else sum(price for price in prices if price is not None)
    return msgspec.structs.replace(found[0], price_per_hour=total)


def _providers(entries: Sequence[AllocationView]) -> list[str]:
    """The providers with an open ledger entry, and all that rent: they may list allocations that the ledger lacks."""
    return sorted({one.provider for one in entries if one.released_at is None} | RENTED)


def _ours(entry: AllocationView, listing: Reconciliation | None) -> Listed:
    listed = _listed(entry, listing)
    price = entry.price_per_hour if entry.price_per_hour is not None or listed is None else listed.price_per_hour
    age = entry.age_sec if entry.age_sec is not None or listed is None else listed.age_sec
    observation = None if listing is None or entry.released_at else "gone" if listed is None else listed.observation
    if listing is not None and listed is None and entry.name not in listing.gone and entry.released_at is None:
        observation = "unknown"
    return Listed(
        ours=True,
        id=entry.id,
        provider=entry.provider,
        name=entry.name,
        allocation_id=entry.provider_id or (listed.allocation_id if listed else None),
        gpu_model=entry.gpu_model or (listed.gpu_model if listed else None),
        state=entry.state,
        observation=observation,
        price_per_hour=price,
        since=entry.created_at,
        age_sec=None if age is None else round(age, 3),
        listed_since=None if listed is None else listed.since,
        spent=entry.spent if entry.spent is not None else _spent(price, age),
        run_id=entry.run_id,
        run_state=entry.run_state,
        keep_until=entry.keep_until.utc if entry.keep_until else None,
        deadline=entry.deadline.utc if entry.deadline else None,
        reason=entry.reason,
        hint="" if entry.error is None else entry.error.hint,
    )


def _spent(price: float | None, age: float | None) -> float | None:
    return None if price is None or age is None else round(price * age / 3600, 6)


def _foreign(provider: str, existing: ExistingAllocation) -> Listed:
    return Listed(
        ours=False,
        id=None,
        provider=provider,
        name=existing.name,
        allocation_id=existing.allocation_id,
        gpu_model=existing.gpu_model,
        state="foreign",
        observation=existing.observation,
        price_per_hour=existing.price_per_hour,
        since=existing.since,
        age_sec=existing.age_sec,
        listed_since=existing.since,
        spent=_spent(existing.price_per_hour, existing.age_sec),
        run_id=None,
        run_state=None,
        keep_until=None,
        deadline=None,
        reason="",
    )
