"""What is rented: the ledger joined with what the providers list, and foreign allocations, which are only shown."""

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
    """One allocation: the ledger's, joined with what its provider lists; or a foreign one, which is only shown.

    `id` is the ledger's. `state` is the ledger's word, or `foreign`. `observation` is None when the provider was not
    asked, or did not answer. Prices in USD, times in UTC.
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


class Trouble(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A provider that could not be asked, and why."""

    provider: str
    code: str
    message: str
    hint: str


class Overview(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Everything that is open, or foreign, at one moment."""

    at: str
    allocations: tuple[Listed, ...]
    troubles: tuple[Trouble, ...]


def overview(home: Path, *, look: bool = True, ended: bool = False) -> Overview:
    """What there is. `look` asks the providers; without it the ledger speaks alone. `ended`: also what is gone."""
    with Reader(home) as reader:
        entries = reader.allocations(open_only=not ended)
        found, troubles = asyncio.run(_look(home, reader, entries)) if look else ({}, [])
        if look:
            found = {name: _taken_back(home, reader, name, seen) for name, seen in found.items()}
            entries = reader.allocations(open_only=not ended)
        listed = [_ours(entry, found.get(entry.provider)) for entry in entries]
    foreign = [_foreign(provider, one) for provider, seen in found.items() for one in seen.foreign]
    return Overview(at=utc_now(), allocations=(*listed, *foreign), troubles=tuple(troubles))


async def _look(
    home: Path, reader: Reader, entries: Sequence[AllocationView]
) -> tuple[dict[str, Reconciliation], list[Trouble]]:
    found: dict[str, Reconciliation] = {}
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
                found[name] = await provider.reconcile(mine)
                if mine:
                    watch_on(home, name)
            finally:
                await provider.close()
        except GlasshouseError as error:
            if mine or error.code not in {"api_key_missing", "extra_missing"}:
                troubles.append(Trouble(provider=name, code=error.code, message=error.message, hint=error.hint))
    return found, troubles


def _taken_back(home: Path, reader: Reader, provider: str, seen: Reconciliation) -> Reconciliation:
    """What the provider lists, with what was believed gone and is listed again among what is ours: it bills."""
    ended = {one.name: one for one in reader.allocations() if one.provider == provider and one.released_at is not None}
    back = tuple(one for one in seen.foreign if one.name in ended)
    if not back:
        return seen
    reason = "it is listed again, although two listings lacked it"
    with Writer(home) as writer:
        for one in back:
            entry = ended[one.name]
            writer.allocation_state(entry.id, "leaked", reason)
            for run_id in reader.runs_served(entry.id):
                writer.transition(run_id, "cleanup", "leaked", reason)
    watch_on(home, provider)
    return msgspec.structs.replace(
        seen, ours=(*seen.ours, *back), foreign=tuple(one for one in seen.foreign if one not in back)
    )


def _providers(entries: Sequence[AllocationView]) -> list[str]:
    """Whoever has something open, and whoever may have something that we do not know of."""
    return sorted({one.provider for one in entries if one.released_at is None} | RENTED)


def _ours(entry: AllocationView, seen: Reconciliation | None) -> Listed:
    listed = next((one for one in seen.ours if one.name == entry.name), None) if seen else None
    observation = None if seen is None or entry.released_at else "gone" if listed is None else listed.observation
    if seen is not None and listed is None and entry.name not in seen.gone and entry.released_at is None:
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
    )


def _foreign(provider: str, found: ExistingAllocation) -> Listed:
    spent = None
    if found.since is not None and found.price_per_hour is not None:
        age = datetime.now(UTC) - datetime.fromisoformat(found.since)
        spent = round(found.price_per_hour * max(age.total_seconds(), 0.0) / 3600, 6)
    return Listed(
        ours=False,
        id=None,
        provider=provider,
        name=found.name,
        allocation_id=found.allocation_id,
        gpu_model=found.gpu_model,
        state="foreign",
        observation=found.observation,
        price_per_hour=found.price_per_hour,
        since=found.since,
        spent=spent,
        run_id=None,
        run_state=None,
        keep_until=None,
        deadline=None,
        reason="",
    )
