"""A run's allocation: in the ledger before it exists, adopted after a restart, released and proven gone at the end."""

from __future__ import annotations

import contextlib
import posixpath
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import GlasshouseError, ProviderError, StoreError, UsageError
from engine.events import AllocationGone
from engine.plan import Plan
from engine.providers.protocol import EmptyProof, Lease, LedgerEntry, Provider, Spec, allocation_name
from engine.providers.settings import Settings
from engine.remote.login import check_login, home_of
from engine.remote.session import SshSession
from engine.runner.end_allocation import ENDED, end_allocation, outcome_of
from engine.runner.folder import INPUTS, WEIGHTS_BYTES, RunFolder
from engine.runner.journal import Journal
from engine.runner.leases import lease_of, matching, with_intent, with_keep, with_lease
from engine.runner.spawn import ensure_sentinel, watch_on
from engine.runner.spec import spec_for
from engine.store.failure import Failure
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.wire import utc_now

INSTALL: Final = "install"


class Allocation:
    """One allocation of one run, with its ledger entry. `on_phase` is called with what is being waited for."""

    def __init__(
        self,
        home: Path,
        writer: Writer,
        reader: Reader,
        provider: Provider,
        plan: Plan,
        settings: Settings,
        run_id: str,
        journal: Journal,
        on_phase: Callable[[str], None] | None = None,
    ) -> None:
        self._home = home
        self._writer = writer
        self._reader = reader
        self._provider = provider
        self._plan = plan
        self._run_id = run_id
        self._journal = journal
        self._on_phase = on_phase
        self._settings = settings
        self.held: LedgerEntry | None = None
        """What this process knows it has, whatever becomes of the home; None before the request and after the end."""

    async def ensure(self) -> Lease:
        """The run's lease, ready: newly acquired, of a kept allocation, or acquired by an earlier runner."""
        entry = self.entry() or self._take_up() or self._intend()
        if entry.ledger_state in ENDED:
            raise ProviderError(
                "This run's allocation has already been released.", "Start the run again.", code="allocation_gone"
            )
        if self.is_rented:
            ensure_sentinel(self._home)
        lease = lease_of(entry)
        self.held = LedgerEntry(name=entry.name, lease=lease)
        if lease is None:
            lease = await self._acquire(entry)
            self.held = LedgerEntry(name=entry.name, lease=lease)
        ready = await self._provider.wait_ready(msgspec.structs.replace(lease, run_id=self._run_id), self._on_phase)
        self.held = LedgerEntry(name=entry.name, lease=ready)
        self._writer.allocation_state(entry.id, "ready", **with_lease(ready))
        return ready

    def save_lease(self, lease: Lease) -> Lease:
        """Record a lease with absolute paths in the ledger, so that a later runner uses the same folders."""
        entry = self.entry()
        if entry is not None:
            self.held = LedgerEntry(name=entry.name, lease=lease)
            self._writer.allocation_state(entry.id, "ready", **with_lease(lease))
        return lease

    async def end(self, keep_minutes: int | None = None) -> EmptyProof | None:
        """Keep the allocation for `keep_minutes`, or release it and prove that it is gone.

        One that cannot be released is recorded as leaked, and the provider's error is raised. Returns the proof of the
        release, or None where nothing was released.
        """
        entry = self.entry()
        if entry is None:
            self._writer.transition(self._run_id, "cleanup", "gone", "nothing was acquired")
            nothing = EmptyProof(
                scope=(), listings=0, count=0, others=None, at=utc_now(), statement="nothing was acquired"
            )
            record_gone(self._writer, self._journal, self._run_id, nothing)
            return None
        recorded = self._reader.evidence(self._run_id).get("allocation_gone")
        if entry.ledger_state in ENDED and recorded is not None:
            return msgspec.convert(recorded, EmptyProof)
        if entry.run_id != self._run_id and entry.ledger_state not in ENDED:
            self._writer.transition(self._run_id, "cleanup", "kept", f"taken up by run {entry.run_id}")
            return None
        if keep_minutes and entry.ledger_state in {"ready", "kept"}:
            self._keep(entry, keep_minutes)
            self.held = None
            return None
        if entry.ledger_state not in ENDED:
            with contextlib.suppress(StoreError):  # see `end_allocation`
                self._writer.transition(self._run_id, "cleanup", "terminating")
        try:
            proof = await end_allocation(self._writer, self._reader, self._provider, entry)
        except GlasshouseError as error:
            watch_on(self._home, self._provider.name)
            state = "active" if error.code == "create_unanswered" else "leaked"
            self._writer.transition(self._run_id, "cleanup", state, Failure.of(error))
            raise
        self.held = None
        self._writer.transition(self._run_id, "cleanup", outcome_of(proof), proof.statement)
        record_gone(self._writer, self._journal, self._run_id, proof)
        return proof

    @property
    def is_rented(self) -> bool:
        """True when the provider bills by the hour."""
        return self._plan.provider.kind.rents

    def entry(self) -> AllocationView | None:
        """The run's ledger entry. The request is recorded in the ledger alone, so that it survives the run folder.

        An allocation that this run kept may since belong to another run.
        """
        return self._reader.allocation_of(self._run_id)

    async def _acquire(self, entry: AllocationView) -> Lease:
        spec = self._spec(entry.name)
        try:
            lease = await self._provider.acquire(spec, self._run_id, self._on_phase)
        except GlasshouseError as error:
            self._writer.allocation_state(entry.id, "intent", Failure.of(error))
            raise
        self._writer.allocation_state(entry.id, "created", **with_lease(lease))
        return lease

    def _spec(self, name: str) -> Spec:
        inputs = RunFolder(self._home, self._run_id).read_json(INPUTS) or {}
        return spec_for(self._home, self._plan, self._settings, name, inputs.get(WEIGHTS_BYTES))

    def _intend(self) -> AllocationView:
        name = allocation_name(installation_id(self._writer, self._reader), self._run_id)
        fields = with_intent(self._spec(name).max_seconds)
        self._writer.allocation_intent(secrets.token_hex(6), self._provider.name, name, self._run_id, **fields)
        entry = self.entry()
        if entry is None:
            raise RuntimeError("the ledger entry that was just written is missing")
        return entry

    def _take_up(self) -> AllocationView | None:
        """Assign the kept allocation that the plan names, if any, to this run."""
        allocation_id = self._plan.provider.allocation
        if allocation_id is None or not self.is_rented:
            return None
        kept = kept_allocation(self._reader, allocation_id)
        self._writer.take_up(kept.id, self._run_id)
        return self.entry()

    def _keep(self, entry: AllocationView, minutes: int) -> None:
        until = keep_until(self._writer, entry, minutes)
        watch_on(self._home, self._provider.name)
        self._writer.transition(self._run_id, "cleanup", "kept", f"kept until {until}")


def keep_until(writer: Writer, entry: AllocationView, minutes: int) -> str:
    """Keep an allocation from now, unless it changed since it was read; returns the end of that time in UTC."""
    fields = with_keep(entry, minutes)
    until = fields["keep_until"].utc if fields["keep_until"] else ""
    writer.allocation_state(entry.id, "kept", f"kept until {until}", only_from=entry.ledger_state, **fields)
    return until


def installation_id(writer: Writer, reader: Reader) -> str:
    """This home's random id in the names of its allocations; made once."""
    stored = reader.setting(INSTALL)
    if stored is None:
        stored = secrets.token_hex(4)
        writer.set_setting(INSTALL, stored)
    return stored


def kept_allocation(reader: Reader, query: str) -> AllocationView:
    """The kept allocation with this id, or a unique prefix of it; raises `UsageError` (`allocation_unknown`)."""
    kept = [entry for entry in reader.allocations(open_only=True) if entry.ledger_state == "kept"]
    matches = matching(kept, query)
    if len(matches) != 1:
        raise UsageError(
            f"There is no kept allocation {query}." if not matches else f"Several kept allocations match {query}.",
            "List them with `glasshouse allocations`, then give the full id.",
            code="allocation_unknown",
        )
    return matches[0]


def record_gone(writer: Writer, journal: Journal, run_id: str, proof: EmptyProof) -> None:
    """Store the proof of release in the run's evidence, and its counts in the runner's log, unless they end it.

    The last one counts: an allocation that was gone may be listed again, and be terminated again.
    """
    writer.evidence(run_id, "allocation_gone", msgspec.to_builtins(proof))
    counted = AllocationGone(count=proof.count, listings=proof.listings, others=proof.others)
    if journal.bodies(AllocationGone)[-1:] != [counted]:
        journal.add(counted)


async def with_absolute_paths(session: SshSession, lease: Lease) -> Lease:
    """The same lease with absolute paths; relative ones are resolved against the login's home folder.

    Raises `RemoteError`: `remote_home_unknown`, and what `check_login` raises.
    """
    if all(path is None or path.startswith("/") for path in (lease.root, lease.heartbeat)):
        return lease
    home = await home_of(session, await check_login(session))
    heartbeat = None if lease.heartbeat is None else posixpath.join(home, lease.heartbeat)
    return msgspec.structs.replace(lease, root=posixpath.join(home, lease.root), heartbeat=heartbeat)
