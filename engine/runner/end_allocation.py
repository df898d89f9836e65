"""Ending an allocation and proving it, for whoever does it: its run, a person, or the sentinel.

Each step bears repeating. What is not proven gone stays open in the ledger, with its reason.
"""

from __future__ import annotations

from typing import Final, Literal

from engine.errors import GlasshouseError, ProviderError, StoreError
from engine.providers.protocol import EmptyProof, Lease, LedgerEntry, Provider, Scope
from engine.runner.leases import lease_of
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer

ENDED: Final = ("gone", "not_ours")
Outcome = Literal["gone", "not_ours", "leaked"]


async def end_allocation(writer: Writer, reader: Reader, provider: Provider, entry: AllocationView) -> EmptyProof:
    """Release one allocation and prove that nothing of its name is left; the ledger says so when this returns.

    Raises `create_unanswered` while one that was asked for may still appear: its entry stays open, and is looked at
    again. Any other failure leaves the entry `leaked`.
    """
    lease = lease_of(entry) or await _found(provider, entry.name)
    if lease is not None and entry.ledger_state not in (*ENDED, "leaked"):  # what leaked stays loud until it is gone
        _announce(writer, entry)
    try:
        if lease is not None:
            await provider.release(lease)
        proof = await provider.prove_empty(Scope(names=(entry.name,), leases=() if lease is None else (lease,)))
    except GlasshouseError as error:
        move(writer, reader, entry, "leaked", f"{error.code}: {error.message}")
        raise
    if proof.unanswered:
        reason = "it was asked for and no clear answer came; its name is looked for until that is certain"
        present = _present(reader, entry)
        writer.allocation_state(entry.id, present.ledger_state, f"create_unanswered: {reason}")
        raise ProviderError(f"{entry.name}: {reason}.", "See `glasshouse allocations`.", code="create_unanswered")
    move(writer, reader, entry, outcome_of(proof), proof.statement)
    return proof


def _announce(writer: Writer, entry: AllocationView) -> None:
    """Say that it is being released, unless somebody took it up since it was looked at."""
    try:
        writer.allocation_state(entry.id, "releasing", only_from=entry.ledger_state)
    except StoreError as error:
        # A store that cannot be written must not keep a machine rented: it is released all the same.
        if error.code == "ledger_move":
            raise


def outcome_of(proof: EmptyProof) -> Outcome:
    """The ledger's word for what was counted."""
    if proof.count is None:
        return "not_ours"
    return "gone" if proof.count == 0 else "leaked"


def move(writer: Writer, reader: Reader, entry: AllocationView, state: Outcome, reason: str) -> None:
    """Enter how it ended, with what it cost up to now."""
    present = _present(reader, entry)
    if present.ledger_state in ENDED:
        return
    if present.spent is not None and state in ENDED:
        writer.allocation_state(entry.id, state, reason, spent=present.spent)
    else:
        writer.allocation_state(entry.id, state, reason)


def _present(reader: Reader, entry: AllocationView) -> AllocationView:
    return reader.allocation(entry.id) or entry


async def _found(provider: Provider, name: str) -> Lease | None:
    """The lease of an allocation that was asked for, but whose answer was lost."""
    seen = await provider.reconcile([LedgerEntry(name=name)])
    return next((found.lease for found in seen.ours if found.name == name), None)
