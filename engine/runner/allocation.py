"""A run's allocation: in the ledger before it exists, adopted after a restart, released and proven gone at the end."""

from __future__ import annotations

import contextlib
import secrets
from typing import Final, Literal

import msgspec

from engine.errors import GlasshouseError, StoreError
from engine.plan import Plan
from engine.providers.protocol import (
    EmptyProof,
    Lease,
    LedgerEntry,
    Provider,
    Scope,
    Spec,
    allocation_name,
)
from engine.runner.journal import Journal
from engine.store.ledger import AllocationFields
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.wire import ALLOCATION_GONE, utc_now

INSTALL: Final = "install"
ENDED: Final = ("gone", "not_ours")
Outcome = Literal["gone", "not_ours", "leaked"]


class Allocation:
    """One allocation of one run, with its ledger entry."""

    def __init__(
        self, writer: Writer, reader: Reader, provider: Provider, plan: Plan, run_id: str, journal: Journal
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._provider = provider
        self._plan = plan
        self._run_id = run_id
        self._journal = journal

    async def have(self) -> Lease:
        """The run's lease, ready: acquired now, or taken up where an earlier runner left it."""
        entry = self._entry()
        if entry is None:
            name = allocation_name(self._install(), self._run_id)
            self._writer.allocation_intent(secrets.token_hex(6), self._provider.name, name, self._run_id)
            entry = self._entry()
            if entry is None:
                raise RuntimeError("the ledger lost an entry")
        lease = self._lease(entry)
        if lease is None:
            request = self._plan.provider
            spec = Spec(name=entry.name, gpus=request.gpus, max_price=request.max_price, max_cost=request.max_cost)
            lease = await self._provider.acquire(spec, self._run_id)
            self._writer.allocation_state(entry.id, "created", **_known(lease))
        ready = await self._provider.wait_ready(lease)
        self._writer.allocation_state(entry.id, "ready", **_known(ready))
        return ready

    async def end(self) -> None:
        """Release and prove it; what cannot be released is recorded as leaked, loudly, and raises."""
        entry = self._entry()
        if entry is None:
            self._writer.transition(self._run_id, "cleanup", "gone", "nothing was acquired")
            nothing = "nothing was acquired"
            self._record(EmptyProof(scope=(), listings=0, count=0, others=None, at=utc_now(), statement=nothing))
            return
        if entry.ledger_state in ENDED and "allocation_gone" in self._reader.evidence(self._run_id):
            return
        if entry.ledger_state not in ENDED:
            # A store that cannot be written must not keep a machine rented: it is released all the same.
            with contextlib.suppress(StoreError):
                self._writer.transition(self._run_id, "cleanup", "terminating")
                self._writer.allocation_state(entry.id, "releasing")
        try:
            proof = await self._release(entry)
        except GlasshouseError as error:
            self._move(entry, "leaked", error.message)
            raise
        self._move(entry, _outcome(proof), proof.statement)
        self._record(proof)

    async def _release(self, entry: AllocationView) -> EmptyProof:
        lease = self._lease(entry) or await self._found(entry.name)
        if lease is not None:
            await self._provider.release(lease)
        return await self._provider.prove_empty(Scope(names=(entry.name,), leases=() if lease is None else (lease,)))

    def _move(self, entry: AllocationView, state: Outcome, reason: str) -> None:
        if entry.ledger_state not in ENDED:
            self._writer.allocation_state(entry.id, state, reason)
        self._writer.transition(self._run_id, "cleanup", state, reason)

    async def _found(self, name: str) -> Lease | None:
        """The lease of an allocation that was asked for, but whose answer was lost."""
        seen = await self._provider.reconcile([LedgerEntry(name=name)])
        return next((found.lease for found in seen.ours if found.name == name), None)

    def _record(self, proof: EmptyProof) -> None:
        body = msgspec.to_builtins(proof)
        self._writer.evidence(self._run_id, "allocation_gone", body)
        self._journal.once(ALLOCATION_GONE, {"count": proof.count, "others": proof.others, "listings": proof.listings})

    def _entry(self) -> AllocationView | None:
        """The run's ledger entry; the ledger alone knows what was asked for, whatever becomes of the run folder."""
        return next((one for one in self._reader.allocations() if one.run_id == self._run_id), None)

    def _lease(self, entry: AllocationView) -> Lease | None:
        kept = self._reader.allocation_detail(entry.id).get("lease")
        return None if kept is None else msgspec.convert(kept, Lease)

    def _install(self) -> str:
        found = self._reader.setting(INSTALL)
        if found is None:
            found = secrets.token_hex(4)
            self._writer.set_setting(INSTALL, found)
        return found


def _known(lease: Lease) -> AllocationFields:
    known = AllocationFields(detail={"lease": msgspec.to_builtins(lease)})
    if lease.gpu_model:
        known["gpu_model"] = lease.gpu_model
    if lease.price_per_hour is not None:
        known["price_per_hour"] = lease.price_per_hour
    return known


def _outcome(proof: EmptyProof) -> Outcome:
    if proof.count is None:
        return "not_ours"
    return "gone" if proof.count == 0 else "leaked"
