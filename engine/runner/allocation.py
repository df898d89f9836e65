"""A run's allocation: in the ledger before it exists, adopted after a restart, released and proven gone at the end."""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from engine.errors import GlasshouseError
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
from engine.runner.folder import RunFolder
from engine.runner.journal import Journal
from engine.store.ledger import AllocationFields
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.wire import ALLOCATION_GONE, utc_now

INTENT: Final = "allocation.json"
LEASE: Final = "lease.json"
INSTALL: Final = "install"


class Allocation:
    """One allocation of one run, with its ledger entry."""

    def __init__(
        self, writer: Writer, reader: Reader, provider: Provider, plan: Plan, run_id: str, folder: RunFolder,
        journal: Journal,
    ) -> None:  # fmt: skip
        self._writer = writer
        self._reader = reader
        self._provider = provider
        self._plan = plan
        self._run_id = run_id
        self._folder = folder
        self._journal = journal

    async def have(self) -> Lease:
        """The run's lease, ready: acquired now, or taken up where an earlier runner left it."""
        entry = self._folder.read_json(INTENT)
        if entry is None:
            entry = {"id": secrets.token_hex(6), "name": allocation_name(self._install(), self._run_id)}
            self._writer.allocation_intent(entry["id"], self._provider.name, entry["name"], self._run_id)
            self._folder.write_json(INTENT, entry)
        lease = self._lease()
        if lease is None:
            request = self._plan.provider
            spec = Spec(name=entry["name"], gpus=request.gpus, max_price=request.max_price, max_cost=request.max_cost)
            lease = await self._provider.acquire(spec, self._run_id)
            self._keep(lease)
            known = AllocationFields(detail={"lease": msgspec.to_builtins(lease)})
            if lease.gpu_model:
                known["gpu_model"] = lease.gpu_model
            if lease.price_per_hour is not None:
                known["price_per_hour"] = lease.price_per_hour
            self._writer.allocation_state(entry["id"], "created", **known)
        ready = await self._provider.wait_ready(lease)
        self._keep(ready)
        self._writer.allocation_state(entry["id"], "ready")
        return ready

    async def end(self) -> None:
        """Release and prove it; what cannot be released is recorded as leaked, loudly, and raises."""
        entry = self._folder.read_json(INTENT)
        if entry is None:
            self._writer.transition(self._run_id, "cleanup", "gone", "nothing was acquired")
            nothing = "nothing was acquired"
            self._record(EmptyProof(scope=(), listings=0, count=0, others=None, at=utc_now(), statement=nothing))
            return
        self._writer.transition(self._run_id, "cleanup", "terminating")
        self._writer.allocation_state(entry["id"], "releasing")
        try:
            lease = self._lease() or await self._found(entry["name"])
            if lease is not None:
                await self._provider.release(lease)
            proof = await self._provider.prove_empty(
                Scope(names=(entry["name"],), leases=() if lease is None else (lease,))
            )
        except GlasshouseError as error:
            self._writer.allocation_state(entry["id"], "leaked", error.message)
            self._writer.transition(self._run_id, "cleanup", "leaked", error.message)
            raise
        if proof.count is None:
            self._writer.allocation_state(entry["id"], "not_ours", proof.statement)
            self._writer.transition(self._run_id, "cleanup", "not_ours", proof.statement)
        elif proof.count == 0:
            self._writer.allocation_state(entry["id"], "gone", proof.statement)
            self._writer.transition(self._run_id, "cleanup", "gone", proof.statement)
        else:
            self._writer.allocation_state(entry["id"], "leaked", proof.statement)
            self._writer.transition(self._run_id, "cleanup", "leaked", proof.statement)
        self._record(proof)

    async def _found(self, name: str) -> Lease | None:
        """The lease of an allocation that was asked for, but whose answer was lost."""
        seen = await self._provider.reconcile([LedgerEntry(name=name)])
        return next((found.lease for found in seen.ours if found.name == name), None)

    def _record(self, proof: EmptyProof) -> None:
        body = msgspec.to_builtins(proof)
        self._writer.evidence(self._run_id, "allocation_gone", body)
        self._journal.add(ALLOCATION_GONE, {"count": proof.count, "others": proof.others, "listings": proof.listings})

    def _lease(self) -> Lease | None:
        raw = self._folder.read(LEASE)
        return None if raw is None else msgspec.json.decode(raw, type=Lease)

    def _keep(self, lease: Lease) -> None:
        self._folder.write(LEASE, msgspec.json.encode(lease))

    def _install(self) -> str:
        found = self._reader.setting(INSTALL)
        if found is None:
            found = secrets.token_hex(4)
            self._writer.set_setting(INSTALL, found)
        return found
