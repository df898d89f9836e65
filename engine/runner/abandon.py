"""Releases what a process holds in memory once its home is gone: from then on nobody else knows of it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import GlasshouseError, ProviderError, StoreError
from engine.plan import PROVIDERS, RENTED
from engine.providers import provider_for
from engine.providers.protocol import Lease, LedgerEntry, Provider
from engine.providers.settings import Settings
from engine.runner.lost import say_last
from engine.system.clock import boot_seconds


async def abandon(
    who: str, home: Path, error: StoreError, held: Sequence[LedgerEntry], provider: str, settings: Settings
) -> None:
    """Release these allocations of one provider, and say so where a user finds it.

    An entry without a lease is searched for by its name, since its creation may not have been answered yet. Whatever
    the provider answers, this does not raise.
    """
    say_last(f"{who}: {error.code}: {error.message}")
    with _place(provider, home) as place:
        try:
            opened = provider_for(provider, place, settings)
        except GlasshouseError as failure:
            _say_failed(who, [entry.name for entry in held], provider, failure)
            return
        try:
            for entry in held:
                await _release(who, opened, entry, settings)
        finally:
            await opened.close()


@contextlib.contextmanager
def _place(provider: str, home: Path) -> Iterator[Path]:
    """A folder for a rented provider's caches, which must not create the home again; else the home's path."""
    if provider not in RENTED:
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="glasshouse-lost-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


async def _release(who: str, provider: Provider, entry: LedgerEntry, settings: Settings) -> None:
    try:
        leases = await _leases(provider, entry, settings)
        for lease in leases:
            await provider.release(lease)
            say_last(f"{who}: released {entry.name} ({lease.allocation_id}).")
        if not leases:
            say_last(f"{who}: {entry.name} was requested, and the provider lists nothing of that name.")
    except GlasshouseError as failure:
        _say_failed(who, [entry.name], provider.name, failure)
    except Exception as failure:  # whatever it is, the other allocations are released, and the user is told
        unexpected = ProviderError(f"An internal error ({type(failure).__name__}: {failure}).", code="internal_error")
        _say_failed(who, [entry.name], provider.name, unexpected)


async def _leases(provider: Provider, entry: LedgerEntry, settings: Settings) -> list[Lease]:
    if entry.lease is not None:
        return [entry.lease]
    limits = settings.runpod.limits
    until = boot_seconds() + limits.search
    while True:
        found = [one.lease for one in (await provider.reconcile([entry])).ours if one.lease is not None]
        if found or boot_seconds() >= until:
            return found
        await asyncio.sleep(limits.poll)


def _say_failed(who: str, names: Sequence[str], provider: str, failure: GlasshouseError) -> None:
    kind = PROVIDERS.get(provider)
    where = f" Check {kind.console_url}." if kind is not None and kind.console_url else ""
    say_last(f"{who}: NOT released: {', '.join(names)}: {failure.code}: {failure.message} {failure.hint}{where}")
