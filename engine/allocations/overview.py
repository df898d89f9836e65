"""What is rented: the ledger joined with the providers' listings, and foreign allocations, which are only shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from engine.errors import GlasshouseError
from engine.plan import RENTED
from engine.providers import provider_for
from engine.providers.protocol import ExistingAllocation, LedgerEntry, Reconciliation
from engine.providers.settings import load_settings
from engine.runner.leases import lease_of
from engine.runner.spawn import watch_on
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.wire import utc_now


class Listed(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One allocation: from the ledger, joined with its provider's listing; or a foreign one, which is only shown.

    `id` is the ledger's. `state` is the ledger's, or `foreign`. `observation` is None when the provider was not
    queried, or did not answer. Prices in USD, times in UTC.
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
    spent: float | None
    run_id: str | None
    run_state: str | None
    keep_until: str | None
    deadline: str | None
    reason: str
    hint: str = ""
    """What to do about the failure in `reason`; empty if it is none."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A provider that could not be queried, and why."""

    provider: str
    code: str
    message: str
    hint: str


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
            listings = {name: _reopen_returned(home, reader, name, listing) for name, listing in listings.items()}
            entries = reader.allocations(open_only=not ended)
        listed = [_ours(entry, listings.get(entry.provider)) for entry in entries]
    foreign = [_foreign(provider, one) for provider, listing in listings.items() for one in listing.foreign]
    return Overview(at=utc_now(), allocations=(*listed, *foreign), troubles=tuple(troubles))


async def _query(
    home: Path, reader: Reader, entries: Sequence[AllocationView]
) -> tuple[dict[str, Reconciliation], list[Trouble]]:
    listings: dict[str, Reconciliation] = {}
    troubles: list[Trouble] = []
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
                if mine:
                    watch_on(home, name)
            finally:
                await provider.close()
        except GlasshouseError as error:
            if mine or error.code not in {"api_key_missing", "extra_missing"}:
                troubles.append(Trouble(provider=name, code=error.code, message=error.message, hint=error.hint))
    return listings, troubles


def _reopen_returned(home: Path, reader: Reader, provider: str, listing: Reconciliation) -> Reconciliation:
    """Reopen as leaked what the ledger calls gone and the provider lists again, since it costs money.

    Returns the listing with those allocations among ours.
    """
    ended = {one.name: one for one in reader.allocations() if one.provider == provider and one.released_at is not None}
    back = tuple(one for one in listing.foreign if one.name in ended)
    if not back:
        return listing
    reason = "the provider lists it again, although two earlier listings did not contain it"
    with Writer(home) as writer:
        for one in back:
            entry = ended[one.name]
            writer.allocation_state(entry.id, "leaked", reason)
            for run_id in reader.runs_served(entry.id):
                writer.transition(run_id, "cleanup", "leaked", reason)
    watch_on(home, provider)
    return msgspec.structs.replace(
        listing, ours=(*listing.ours, *back), foreign=tuple(one for one in listing.foreign if one not in back)
    )


def _providers(entries: Sequence[AllocationView]) -> list[str]:
    """The providers with an open ledger entry, and all that rent: they may list allocations that the ledger lacks."""
    return sorted({one.provider for one in entries if one.released_at is None} | RENTED)


def _ours(entry: AllocationView, listing: Reconciliation | None) -> Listed:
    listed = next((one for one in listing.ours if one.name == entry.name), None) if listing else None
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
        price_per_hour=entry.price_per_hour,
        since=entry.created_at,
        spent=entry.spent,
        run_id=entry.run_id,
        run_state=entry.run_state,
        keep_until=entry.keep_until.utc if entry.keep_until else None,
        deadline=entry.deadline.utc if entry.deadline else None,
        reason=entry.reason,
        hint="" if entry.error is None else entry.error.hint,
    )


def _foreign(provider: str, existing: ExistingAllocation) -> Listed:
    spent = None
    if existing.since is not None and existing.price_per_hour is not None:
        age = datetime.now(UTC) - datetime.fromisoformat(existing.since)
        spent = round(existing.price_per_hour * max(age.total_seconds(), 0.0) / 3600, 6)
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
        spent=spent,
        run_id=None,
        run_state=None,
        keep_until=None,
        deadline=None,
        reason="",
    )
