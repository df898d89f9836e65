"""Releases an allocation and proves that it is gone. Called by its run, by the cleanup command and by the sentinel.

Each step is idempotent. An allocation that is not proven gone stays open in the ledger, with the reason.
"""

from __future__ import annotations

import contextlib
from typing import Final, Literal

from engine.errors import GlasshouseError, ProviderError, StoreError
from engine.plan import RENTED
from engine.providers.protocol import EmptyProof, Lease, LedgerEntry, Provider, Scope
from engine.runner.leases import lease_of, with_listing
from engine.store.deadline import Recheck
from engine.store.failure import Failure, Reason
from engine.store.ledger import AllocationFields
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer

ENDED: Final = ("gone", "not_ours")
Outcome = Literal["gone", "not_ours", "leaked"]


async def end_allocation(writer: Writer, reader: Reader, provider: Provider, entry: AllocationView) -> EmptyProof:
    """Release one allocation and prove that none of its name is left; the ledger is updated when this returns.

    Raises `create_unanswered` while an allocation may still appear whose request got no answer: its entry stays open
    and is checked again later. Any other failure leaves the entry `leaked`.
    """
    lease, confirmed = lease_of(entry) or await _unrecorded_lease(provider, entry.name), False
    if entry.age_sec is None and lease is not None:
        await _note_age(writer, provider, entry, lease)
    if lease is not None and entry.ledger_state not in (*ENDED, "leaked"):  # a leak stays visible until it is gone
        _announce(writer, entry)
    try:
        if lease is not None:
            confirmed = await provider.release(lease)
        proof = await provider.prove_empty(Scope(names=(entry.name,), leases=() if lease is None else (lease,)))
    except GlasshouseError as error:
        move(writer, reader, entry, "leaked", Failure.of(error))
        raise
    if proof.unanswered:
        unanswered = _unanswered(entry)
        writer.allocation_state(entry.id, _present(reader, entry).ledger_state, Failure.of(unanswered))
        raise unanswered
    # Without a lease nothing is known to have existed.
    move(writer, reader, entry, outcome_of(proof), proof.statement, confirmed=confirmed or lease is None)
    return proof


def _unanswered(entry: AllocationView) -> ProviderError:
    return ProviderError(
        f"{entry.name}: the provider gave no clear answer to its request; its name is checked until the outcome is "
        "certain.",
        "Check `glasshouse allocations` later.",
        code="create_unanswered",
    )


def _announce(writer: Writer, entry: AllocationView) -> None:
    """Record that it is being released, unless another run took it up since `entry` was read."""
    try:
        writer.allocation_state(entry.id, "releasing", only_from=entry.ledger_state)
    except StoreError as error:
        # A store that cannot be written must not keep a machine rented: it is released anyway.
        if error.code == "ledger_move":
            raise


def outcome_of(proof: EmptyProof) -> Outcome:
    """The ledger state that follows from the proof."""
    if proof.count is None:
        return "not_ours"
    return "gone" if proof.count == 0 else "leaked"


def move(
    writer: Writer, reader: Reader, entry: AllocationView, state: Outcome, reason: Reason, *, confirmed: bool = False
) -> None:
    """Record the outcome, with the cost up to now. What is rented and gone is looked for again, see `Recheck`."""
    present = _present(reader, entry)
    if present.ledger_state in ENDED:
        return
    fields = AllocationFields()
    if present.spent is not None and state in ENDED:
        fields["spent"] = present.spent
    if state == "gone" and entry.provider in RENTED:
        fields["recheck"] = Recheck.begin(confirmed=confirmed)
    writer.allocation_state(entry.id, state, reason, **fields)


async def _note_age(writer: Writer, provider: Provider, entry: AllocationView, lease: Lease) -> None:
    """Record the age that the provider states, since this machine was restarted and knows none: the cost needs it."""
    with contextlib.suppress(GlasshouseError):
        for found in (await provider.reconcile([LedgerEntry(name=entry.name, lease=lease)])).ours:
            writer.allocation_known(entry.id, **with_listing(entry, found))


def _present(reader: Reader, entry: AllocationView) -> AllocationView:
    return reader.allocation(entry.id) or entry


async def _unrecorded_lease(provider: Provider, name: str) -> Lease | None:
    """The lease of an allocation that was requested, but whose answer was lost."""
    listing = await provider.reconcile([LedgerEntry(name=name)])
    return next((allocation.lease for allocation in listing.ours if allocation.name == name), None)
