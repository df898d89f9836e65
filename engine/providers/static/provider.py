"""The operator's own SSH hosts from the configuration: never rented or deleted, one run at a time on each."""

from __future__ import annotations

import asyncio
import posixpath
import re
from typing import TYPE_CHECKING, Final

import asyncssh
import msgspec

from engine.errors import GlasshouseError, ProviderError, RemoteError, UsageError
from engine.providers.gpu_table import memory_of
from engine.providers.protocol import (
    Address,
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
from engine.providers.settings import HostSettings, Settings, host_settings
from engine.providers.static.addresses import address_of, check_keys
from engine.providers.static.explain import explained
from engine.providers.static.hosts import gpu_of, remove_run
from engine.remote.endpoint import LinkLimits
from engine.remote.examine import Part, examine
from engine.remote.host_lock import Busy, acquire_lock, free_lock
from engine.remote.login import check_login, check_python, home_of
from engine.remote.session import SshSession
from engine.wire import utc_now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

NAME: Final = "static"
_PREFIX: Final = "static:"
_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class StaticProvider:
    """Hosts by their configured names. A lease names the host; the address is looked up whenever the lease is used."""

    def __init__(self, settings: Settings, limits: LinkLimits | None = None) -> None:
        self._settings = settings
        self._limits = limits or LinkLimits()

    @property
    def name(self) -> str:
        """`static`."""
        return NAME

    async def preflight(self) -> None:
        """Raise when no host is configured (`host_unknown`), or when a key file or agent of a host or of a jump to it
        is missing or of no use (`key_missing`, `key_unusable`, `agent_missing`).
        """
        if not self._settings.host:
            host_settings(self._settings, None)
        for host in self._settings.host:
            await asyncio.to_thread(check_keys, host)

    async def quote(self, spec: Spec) -> Quote:
        """The host, at no cost; its GPU is queried over SSH unless the configuration names it."""
        host = host_settings(self._settings, spec.host)
        gpu = host.gpu
        if gpu is None:
            async with await self._open(host, None) as session:
                await check_login(session)
                gpu = await gpu_of(session)
        return Quote(provider=NAME, gpu_model=gpu, price_per_hour=0.0)

    async def devices(self, spec: Spec) -> tuple[Device, ...]:
        """The GPU that the configuration names, with the memory that such GPUs have; empty if it names none."""
        name = host_settings(self._settings, spec.host).gpu
        return () if name is None else (Device(name=name, kind="cuda", memory=memory_of(name)),)

    async def claim(self, spec: Spec, run_id: str) -> str | None:
        """Claim the host for a run; see `Exclusive`. Only runs below the same `root` exclude each other.

        Login and Python are looked at first, so that what is wrong with them is not reported as a fault of the lock.
        """
        lease = await self.wait_ready(await self.acquire(spec, run_id))
        async with await self.open_session(lease) as session:
            await check_login(session)
            await check_python(session, lease.python, lease.environment)
            outcome = await acquire_lock(session, lease.root, run_id, lease.python)
        return outcome.reason if isinstance(outcome, Busy) else None

    async def let_go(self, spec: Spec, run_id: str) -> None:
        """Free the host if this run holds it."""
        lease = await self.wait_ready(await self.acquire(spec, run_id))
        async with await self.open_session(lease) as session:
            if await session.exists(lease.root):
                await free_lock(session, lease.root, run_id, lease.python)

    async def examine(self, name: str) -> AsyncIterator[Part]:
        """Log in to a host and try what a run needs there, part by part; nothing is left on it."""
        host = host_settings(self._settings, name)
        try:
            await asyncio.to_thread(check_keys, host)
            session = await self._open(host, None)
        except GlasshouseError as error:
            yield Part(name="login", passed=False, detail=error.message, code=error.code, hint=error.hint)
            return
        async with session:
            through = f", through {len(host.proxy_jump)} pinned jump hosts" if host.proxy_jump else ""
            yield Part(name="login", passed=True, detail=f"{host.user} at {host.address}, host key pinned{through}")
            async for part in examine(session, host):
                yield part

    async def acquire(self, spec: Spec, run_id: str, on_phase: OnPhase | None = None) -> Lease:
        """A lease of the host. Nothing is created there yet; the runner takes the host's lock with `claim`."""
        host = host_settings(self._settings, spec.host)
        return Lease(
            allocation_id=f"{_PREFIX}{host.name}",
            provider=NAME,
            name=spec.name,
            run_id=run_id,
            gpu_model=host.gpu,
            price_per_hour=0.0,
            acquired_at=utc_now(),
            root=host.root,
            python=host.python,
            site_paths=host.site,
            machine={"hostKey": _fingerprint(host)},
            environment=host.environment,
            index=host.index,
        )

    async def wait_ready(self, lease: Lease, on_phase: OnPhase | None = None) -> Lease:
        """The lease with its host's address, its absolute root and its GPU.

        Raises `host_key_mismatch` before anything is sent, `allocation_changed` when the configuration now trusts
        another key than at `acquire`, and the link's codes.
        """
        host = self._host_of(lease)
        if _fingerprint(host) != lease.machine.get("hostKey"):
            raise ProviderError(
                f"The configured host key of host {host.name} has changed since this run began.",
                "Restore the earlier host key in config.toml, or cancel the run.",
                code="allocation_changed",
            )
        if on_phase is not None:
            on_phase("ssh server")
        with explained(host):
            address = await address_of(host, lease.address, self._limits)
            lease = msgspec.structs.replace(lease, address=address)
            if lease.root.startswith("/") and lease.gpu_model is not None:
                return lease
            async with await self._connect(address) as session:
                login = await check_login(session)
                root = lease.root if lease.root.startswith("/") else await home_of(session, login)
                root = posixpath.normpath(posixpath.join(root, lease.root))
                return msgspec.structs.replace(lease, root=root, gpu_model=lease.gpu_model or await gpu_of(session))

    async def open_session(self, lease: Lease) -> SshSession:
        """A session at the lease's address; see `SshSession.connect`."""
        with explained(self._host_of(lease)):
            return await SshSession.connect(lease.endpoint(), self._limits)

    async def observe(self, lease: Lease) -> Observation:
        """`alive` when the login works, otherwise `unknown`: a host that cannot be reached is not proven to be down."""
        try:
            async with await self._open(self._host_of(lease), lease.address):
                return "alive"
        except (RemoteError, ProviderError, UsageError):
            return "unknown"

    async def release(self, lease: Lease) -> bool:
        """Terminate what this run left running there and remove its folder; a cancellation does not interrupt it.

        The host itself and the installed environment stay.
        """
        await asyncio.shield(asyncio.ensure_future(self._release(lease)))
        return True

    async def prove_empty(self, scope: Scope) -> EmptyProof:
        """A proof without a count: the hosts are the operator's own."""
        names = set(scope.names) | {lease.name for lease in scope.leases}
        return EmptyProof(
            scope=tuple(sorted(names)),
            listings=0,
            count=None,
            others=None,
            at=utc_now(),
            statement="not ours to delete: the host is the operator's own, and only the run's folder was removed",
        )

    async def reconcile(self, ledger: Sequence[LedgerEntry]) -> Reconciliation:
        """Check each lease of the ledger; an intent that got no lease has created nothing."""
        leases = [entry.lease for entry in ledger if entry.lease is not None]
        observations = await asyncio.gather(*map(self.observe, leases))
        return Reconciliation(
            ours=tuple(
                ExistingAllocation(
                    name=lease.name,
                    observation=observation,
                    lease=lease,
                    allocation_id=lease.allocation_id,
                    gpu_model=lease.gpu_model,
                    price_per_hour=0.0,
                    since=lease.acquired_at,
                )
                for lease, observation in zip(leases, observations, strict=True)
            ),
            gone=tuple(sorted(entry.name for entry in ledger if entry.lease is None)),
        )

    async def close(self) -> None:
        """Nothing to close."""

    def _host_of(self, lease: Lease) -> HostSettings:
        return host_settings(self._settings, lease.allocation_id.removeprefix(_PREFIX))

    async def _open(self, host: HostSettings, known: Address | None) -> SshSession:
        with explained(host):
            return await self._connect(await address_of(host, known, self._limits))

    async def _connect(self, address: Address) -> SshSession:
        return await SshSession.connect(address.endpoint(), self._limits)

    async def _release(self, lease: Lease) -> None:
        if lease.address is None:
            return  # it was never ready, so nothing was stored there
        if not _RUN.fullmatch(lease.run_id) or not lease.root.startswith("/"):
            raise ProviderError("The run's id or root is not valid; nothing was removed.", code="release_failed")
        folder = posixpath.join(lease.root, lease.run_id)
        try:
            host = self._host_of(lease)
            async with await self._open(host, lease.address) as session:
                await remove_run(session, lease.python, lease.root, lease.run_id)
        except (RemoteError, UsageError) as error:
            raise ProviderError(
                f"What this run left on host {lease.allocation_id.removeprefix(_PREFIX)} could not be removed "
                f"({error.code}).",
                f"Remove {folder} there by hand, or run `glasshouse cleanup` once the host can be reached.",
                code="release_failed",
            ) from error


def _fingerprint(host: HostSettings) -> str:
    """The SHA-256 fingerprint that is trusted."""
    if host.host_key.startswith("SHA256:"):
        return host.host_key
    try:
        return asyncssh.import_public_key(host.host_key).get_fingerprint()
    except asyncssh.KeyImportError as error:
        raise UsageError(
            f"The host key of host {host.name} cannot be read.",
            "Give its line as in /etc/ssh/ssh_host_ed25519_key.pub, or its SHA256: fingerprint.",
            code="config_invalid",
        ) from error
