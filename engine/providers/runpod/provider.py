"""`RunPodProvider`: pods of one RunPod account, none of which is ever lost track of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import GlasshouseError, ProviderError
from engine.providers.protocol import (
    Device,
    EmptyProof,
    ExistingAllocation,
    Lease,
    LedgerEntry,
    Observation,
    OnPhase,
    Quote,
    Reconciliation,
    Scope,
    Spec,
)
from engine.providers.runpod.account import BY_HAND, Account
from engine.providers.runpod.acquisition import Acquisition
from engine.providers.runpod.api.factory import account_of, make_api
from engine.providers.runpod.api.listing import SharedListing
from engine.providers.runpod.api.prices import SharedPrices
from engine.providers.runpod.api.protocol import Pod
from engine.providers.runpod.folder import AllocationFolder
from engine.providers.runpod.gpu_choice import choices, named, none_acceptable
from engine.providers.runpod.lease import NAME, age, existing, lease_of, observation
from engine.providers.runpod.readiness import Readiness
from engine.providers.settings import Settings
from engine.remote.endpoint import LinkLimits
from engine.remote.session import SshSession
from engine.system.clock import boot_seconds
from engine.system.shield import run_to_completion

RECENT_SECONDS: Final = 30.0
_GIB: Final = 1024**3


class RunPodProvider:
    """Pods rented through the API chosen in the settings; their private files are in `allocations/` of the home."""

    def __init__(self, home: Path, settings: Settings, limits: LinkLimits | None = None) -> None:
        self._home = home
        self._all = settings
        self._settings = settings.runpod
        self._limits = limits
        self._open_account: Account | None = None
        self._report: Callable[[str], None] = _ignore

    @property
    def name(self) -> str:
        """`runpod`."""
        return NAME

    async def preflight(self) -> None:
        """Raise `api_key_missing`, `api_key_rejected`, `api_gone` or why RunPod does not answer. Spends nothing.

        A listing that another process of this home obtained within `RECENT_SECONDS` is good enough.
        """
        await self._account().listed(boot_seconds() - RECENT_SECONDS)

    async def quote(self, spec: Spec) -> Quote:
        """The first acceptable GPU in stock and its price; raises as `gpu_choice.choices`."""
        offers = await self._account().prices.offers()
        first = choices(offers, spec, self._settings)[0]
        return Quote(provider=NAME, gpu_model=first.model, price_per_hour=first.price)

    async def devices(self, spec: Spec) -> tuple[Device, ...]:
        """The acceptable GPUs with the memory that RunPod lists; those that it does not list are left out.

        Raises `ProviderError` (`no_acceptable_gpu`) if it lists none of them.
        """
        everything, acceptable = await self._account().prices.offers(), spec.gpus or self._settings.gpus
        offers = named(everything, acceptable)
        if not offers:
            raise none_acceptable(acceptable, False, everything, self._settings)
        found = {one.id: Device(name=one.name, kind="cuda", memory=one.memory_gb * _GIB) for one in offers}
        return tuple(found.values())

    async def acquire(self, spec: Spec, run_id: str, on_phase: OnPhase | None = None) -> Lease:
        """The pod called `spec.name`, requested once. When cancelled, it terminates what was created before it returns.

        Raises `no_acceptable_gpu`, `price_above_ceiling`, `no_capacity`, `order_refused`, `no_balance` (nothing was
        created), `price_above_quote`, `price_unknown`, `create_duplicated` (what was created is gone),
        `create_unanswered` (unknown; checked again at every start) and `leaked`.
        """
        folder = AllocationFolder(self._home, spec.name)
        self._report = on_phase or _ignore
        attempt = Acquisition(self._account(), self._settings, folder, spec, run_id, self._report)
        try:
            return await attempt.run()
        except asyncio.CancelledError:
            await run_to_completion(attempt.undo())
            raise

    async def wait_ready(self, lease: Lease, on_phase: OnPhase | None = None) -> Lease:
        """The lease with the address at which sshd presents the pinned key now; see `Readiness.run` for the errors."""
        folder = AllocationFolder(self._home, lease.name)
        self._report = on_phase or _ignore
        return await Readiness(self._account(), self._settings.limits, folder, lease, self._report).run()

    async def open_session(self, lease: Lease) -> SshSession:
        """A session at the lease's address; see `SshSession.connect`."""
        return await SshSession.connect(lease.endpoint(), self._limits)

    async def observe(self, lease: Lease) -> Observation:
        """The pod's state, at most one poll old; `gone` after two listings, `unknown` if RunPod gives no answer."""
        try:
            account = self._account()
            listing = await account.listed(boot_seconds() - self._settings.limits.poll)
            pod = _by_id(listing.pods, lease.allocation_id)
            if pod is not None:
                return observation(pod)
            if self._is_of_another_account(lease.name):
                return "unknown"
            return "gone" if await account.is_gone(lease.allocation_id, listing) else "unknown"
        except GlasshouseError:
            return "unknown"

    async def release(self, lease: Lease) -> bool:
        """Terminate the pod and prove it by two listings; a cancellation does not interrupt it. Raises `leaked`."""
        return await run_to_completion(self._release(lease))

    async def prove_empty(self, scope: Scope) -> EmptyProof:
        """Count the scope's pods in two listings; a listing that fails is an error, never zero."""
        account = self._account()
        first = await account.listed()
        second = await account.second_listing(first)
        names = set(scope.names) | {lease.name for lease in scope.leases}
        ids = {lease.allocation_id for lease in scope.leases}
        listed = {pod.id: pod for pod in (*first.pods, *second.pods)}
        ours = {pod_id for pod_id, pod in listed.items() if pod.name in names or pod_id in ids}
        for name in sorted(names):
            self._check_account(name, [pod for pod in listed.values() if pod.name == name])
        unanswered: tuple[str, ...] = ()
        if not ours:
            leased = {lease.name for lease in scope.leases}
            unanswered = tuple(name for name in sorted(names) if not self._forget(name, name in leased))
        return EmptyProof(
            scope=tuple(sorted(names)),
            listings=2,
            count=len(ours),
            others=sum(pod.id not in ours for pod in second.pods),
            at=second.at_utc,
            statement="two listings of the account's pods were counted",
            unanswered=unanswered,
        )

    async def reconcile(self, ledger: Sequence[LedgerEntry]) -> Reconciliation:
        """Compare the ledger with a listing; a name counts as gone when a second listing lacks it too."""
        account = self._account()
        listing = await account.listed()
        pods = {pod.id: pod for pod in listing.pods}
        absent = [entry for entry in ledger if not _of(entry, pods.values())]
        gone: list[str] = []
        if absent:
            pods |= {pod.id: pod for pod in (await account.second_listing(listing)).pods}
            gone = [
                entry.name
                for entry in absent
                if not _of(entry, pods.values())
                and not self._is_of_another_account(entry.name)
                and not self._may_appear(entry.name, entry.lease is not None)
            ]
        ours = {pod.id: self._existing(pod, entry) for entry in ledger for pod in _of(entry, pods.values())}
        return Reconciliation(
            ours=tuple(ours.values()),
            gone=tuple(sorted(gone)),
            foreign=tuple(existing(pod) for pod_id, pod in pods.items() if pod_id not in ours),
        )

    async def close(self) -> None:
        """Close connections."""
        if self._open_account is not None:
            opened, self._open_account = self._open_account, None
            await opened.api.close()

    def _account(self) -> Account:
        if self._open_account is None:
            api = make_api(self._all, self._home, self._on_wait)
            listing, prices = SharedListing(api, self._home), SharedPrices(api, self._home)
            self._open_account = Account(api, listing, prices, self._settings.limits, account_of(self._home))
        return self._open_account

    def _on_wait(self, seconds: float, why: str) -> None:
        """Report to the caller of this provider why and how long the API makes it wait."""
        self._report(f"{why}: {seconds:.0f} s")

    async def _release(self, lease: Lease) -> bool:
        if self._is_of_another_account(lease.name):
            pods = (await self._account().listed()).pods
            self._check_account(lease.name, [pod for pod in pods if lease.name == pod.name])
        confirmed = await self._account().terminate(lease.name, (lease.allocation_id,), lease.price_per_hour)
        AllocationFolder(self._home, lease.name).destroy()
        return confirmed

    def _is_of_another_account(self, name: str) -> bool:
        """True when it was requested from another server or with another key: our listings may not show its pod."""
        try:
            record = AllocationFolder(self._home, name).record()
        except ProviderError:
            return False
        return record is not None and record.account not in {"", self._account().identity}

    def _check_account(self, name: str, pods: Sequence[Pod]) -> None:
        """Raise `account_differs` when our listings prove nothing about `name`.

        If they show its pod, the new key belongs to the same account, which is then recorded.
        """
        if not self._is_of_another_account(name):
            return
        folder = AllocationFolder(self._home, name)
        if not pods:
            raise ProviderError(
                f"{name} was rented with another RunPod key or from another server, so a listing cannot show whether "
                "it is gone.",
                f"Set the key and the server that it was rented with. If that key no longer exists, check {BY_HAND}; "
                f"once the pod is gone there, remove {folder.path} and run `glasshouse cleanup`.",
                code="account_differs",
            )
        with contextlib.suppress(ProviderError):
            if (record := folder.record()) is not None:
                folder.write_record(msgspec.structs.replace(record, account=self._account().identity))

    def _forget(self, name: str, has_lease: bool) -> bool:
        """Destroy the folder of a name that two listings lack; False while its creation is still unanswered."""
        folder = AllocationFolder(self._home, name)
        if self._may_appear(name, has_lease):
            return False
        folder.destroy()
        return True

    def _may_appear(self, name: str, has_lease: bool) -> bool:
        """True while a request under this name is unanswered and younger than `limits.parked`."""
        if has_lease:
            return False
        folder = AllocationFolder(self._home, name)
        try:
            record = folder.record()
        except ProviderError:
            return folder.seconds_since_noticed() < self._settings.limits.parked
        if record is None or record.open is None:
            return False
        passed = age(record.open)  # after a restart of this machine: from when that was noticed
        return (folder.seconds_since_noticed() if passed is None else passed) < self._settings.limits.parked

    def _existing(self, pod: Pod, entry: LedgerEntry) -> ExistingAllocation:
        """The pod with the ledger's lease, or with one that is created again from the folder."""
        if entry.lease is not None and entry.lease.allocation_id == pod.id:
            return existing(pod, entry.lease)
        folder = AllocationFolder(self._home, entry.name)
        try:
            record = folder.record()
        except ProviderError:
            record = None  # the pod is ours all the same, and can be terminated
        return existing(pod, lease_of(pod, folder, record, self._settings))


def _of(entry: LedgerEntry, pods: Iterable[Pod]) -> list[Pod]:
    """The listed pods that belong to one ledger entry."""
    pod_id = None if entry.lease is None else entry.lease.allocation_id
    return [pod for pod in pods if pod.name == entry.name or pod.id == pod_id]


def _by_id(pods: Iterable[Pod], pod_id: str) -> Pod | None:
    return next((pod for pod in pods if pod.id == pod_id), None)


def _ignore(_: str) -> None:
    """The default when no progress callback is given."""
