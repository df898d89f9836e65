"""Allocations that were gone and are listed again: a provider's listing can lack one for a while, and bill it.

Two listings that lack an allocation are the proof that it is gone, and no proof that it stays so. Whoever lists for
another reason looks for those as well; the sentinel lists again on its own, at growing intervals after an end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import GlasshouseError
from engine.hints import HINTS
from engine.providers.protocol import EmptyProof, ExistingAllocation, Provider, Reconciliation
from engine.runner.final_row import destroy_leftovers, settle_runs
from engine.runner.leases import with_listing
from engine.runner.spawn import watch_on
from engine.store.failure import Failure
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.wire import utc_now

REASON: Final = "the provider lists it again, although two earlier listings did not contain it"

_LEAKED: Final = Failure(code="leaked", message=f"{REASON[0].upper()}{REASON[1:]}.", hint=HINTS["leaked"])


def reopen_returned(home: Path, reader: Reader, provider: str, listing: Reconciliation) -> Reconciliation:
    """Reopen as leaked what the ledger calls gone and the provider lists again, since it costs money.

    The rows of the runs that used it are signed again: they say that it is not gone. Returns the listing with those
    allocations among ours.
    """
    ended = [one for one in reader.allocations() if one.provider == provider and one.ledger_state == "gone"]
    back = {one.allocation_id or one.name: (one, entry) for one in listing.foreign if (entry := _of(one, ended))}
    if not back:
        return listing
    with Writer(home) as writer:
        for one, entry in back.values():
            _reopen(home, writer, reader, one, entry, len(listing.foreign) - len(back))
    watch_on(home, provider)
    returned = tuple(one for one, _ in back.values())
    foreign = tuple(one for one in listing.foreign if one not in returned)
    return msgspec.structs.replace(listing, ours=(*listing.ours, *returned), foreign=foreign)


def _of(found: ExistingAllocation, ended: Sequence[AllocationView]) -> AllocationView | None:
    """The ended entry that a listed allocation belongs to, by its exact name or its provider's id."""
    return next(
        (
            one
            for one in ended
            if one.name == found.name or (one.provider_id is not None and one.provider_id == found.allocation_id)
        ),
        None,
    )


def _reopen(
    home: Path, writer: Writer, reader: Reader, found: ExistingAllocation, entry: AllocationView, others: int
) -> None:
    writer.allocation_state(entry.id, "leaked", _LEAKED, **with_listing(entry, found))
    listed = EmptyProof(scope=(entry.name,), listings=1, count=1, others=others, at=utc_now(), statement=REASON)
    settle_runs(home, writer, reader, entry, listed, again=True)


async def look_again(home: Path, reader: Reader, provider: Provider, entries: Sequence[AllocationView]) -> bool:
    """List once, and reopen what has returned of these ended allocations; True if any has.

    Raises the provider's error: then nothing was seen, and the look is due as before.
    """
    reopen_returned(home, reader, provider.name, await provider.reconcile([]))
    with Writer(home) as writer:
        present = [one for entry in entries if (one := reader.allocation(entry.id)) is not None]
        for one in present:
            if one.ledger_state == "gone" and one.recheck is not None:
                writer.allocation_known(one.id, recheck=one.recheck.after_look())
    with contextlib.suppress(GlasshouseError, OSError):
        destroy_leftovers(home, reader)
    return any(one.ledger_state != "gone" for one in present)
