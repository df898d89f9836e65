"""Waiting until a pod's SSH server presents the pinned key, with a report of what is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import asyncssh
import msgspec

from engine.errors import GlasshouseError, ProviderError
from engine.providers.protocol import Address, Lease
from engine.providers.runpod.account import HOPELESS, Account
from engine.providers.runpod.api import protocol
from engine.providers.runpod.api.listing import Listing
from engine.providers.runpod.folder import AllocationFolder
from engine.providers.runpod.gpu_choice import above_quote
from engine.providers.runpod.lease import observation
from engine.providers.settings import RunPodLimits
from engine.remote.connect import HOST_KEY_ALGORITHMS
from engine.system.clock import boot_seconds

PROBE_SECONDS: Final = 10.0
FIRST_PAUSE: Final = 0.1
MOST_PAUSE: Final = 1.0
LOG_READS: Final = 3
"""How often the log is read before a missing fingerprint counts as a mismatch: the image may still be printing it."""


class Readiness:
    """One wait for one lease; every wait resolves the address again."""

    def __init__(
        self,
        account: Account,
        limits: RunPodLimits,
        folder: AllocationFolder,
        lease: Lease,
        report: Callable[[str], None],
    ) -> None:
        self._account = account
        self._limits = limits
        self._folder = folder
        self._lease = lease
        self._report = report
        self._began = boot_seconds()
        self._last_listing: Listing | None = None
        self._address_since: float | None = None
        """Boot clock time since which there has been an address."""

    async def run(self) -> Lease:
        """The lease with its address.

        Raises `allocation_gone`, `allocation_stopped`, `price_above_quote`, `provisioning_timeout`,
        `port_not_public`, `ssh_timeout`, `host_key_mismatch`, `allocation_unknown` (its keys are missing here).
        """
        pinned = self._folder.host_key()
        if pinned is None:
            raise ProviderError(
                f"The keys of allocation {self._lease.name} are missing from {self._folder.path}.",
                "Release it: nobody can log in to it any more.",
                code="allocation_unknown",
            )
        if pinned.get_fingerprint() != self._lease.machine.get("hostKey"):
            raise self._mismatch("Its folder holds a different key.")
        while True:
            pod = await self._pod()
            if pod is not None and pod.ssh is not None:
                if await self._answers(pod.ssh, pinned):
                    await self._compare_log(pinned)
                    return msgspec.structs.replace(self._lease, address=self._address(pod.ssh, pinned))
            elif pod is not None:
                self._address_since = None
                self._report_phase("image" if not pod.has_runtime else "ports")
            if pod is None or pod.ssh is None:
                self._check_provisioning(pod)
                await asyncio.sleep(self._limits.poll)

    async def _pod(self) -> protocol.Pod | None:
        """The pod in a listing newer than the last one and no older than one poll; None if RunPod gave no answer."""
        after = boot_seconds() - self._limits.poll
        if self._last_listing is not None:
            after = max(after, self._last_listing.began + 1e-3)
        try:
            listing = await self._account.listed(after)
            pod = next((pod for pod in listing.pods if pod.id == self._lease.allocation_id), None)
            is_gone = pod is None and await self._account.is_gone(self._lease.allocation_id, listing)
        except GlasshouseError as error:
            if error.code in HOPELESS:
                raise
            self._report_phase(f"RunPod does not answer ({error.code})")
            return None
        if is_gone:
            raise ProviderError(
                f"Pod {self._lease.allocation_id} no longer exists: two listings lack it.",
                "Start a new run.",
                code="allocation_gone",
            )
        self._last_listing = listing
        quoted = self._lease.price_per_hour
        if pod is not None and pod.price_per_hour is not None and quoted is not None:
            too_expensive = above_quote(pod.id, pod.price_per_hour, quoted)
            if too_expensive is not None:
                raise too_expensive
        if pod is not None and observation(pod) == "stopped":
            raise ProviderError(
                f"Pod {pod.id} has stopped (status {pod.status}); its disk still bills.",
                "Release it and start a new run.",
                code="allocation_stopped",
            )
        return pod

    async def _answers(self, where: protocol.Address, pinned: asyncssh.SSHKey) -> bool:
        """Probe the address until it presents the pinned key or another listing is due, without logging in."""
        if self._address_since is None:
            self._address_since = boot_seconds()
        due, pause = boot_seconds() + self._limits.poll, FIRST_PAUSE
        while True:
            shown = await _host_key(where, pinned)
            if shown is not None:
                if shown.public_data == pinned.public_data:
                    return True
                raise self._mismatch(f"It presents {shown.get_fingerprint()}.")
            self._report_phase("ssh")
            if boot_seconds() - self._address_since > self._limits.ssh:
                raise ProviderError(
                    f"The SSH server of pod {self._lease.allocation_id} did not answer for {self._limits.ssh:.0f} s.",
                    "Release it and start a new run.",
                    code="ssh_timeout",
                )
            if boot_seconds() >= due:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_PAUSE)

    async def _compare_log(self, pinned: asyncssh.SSHKey) -> None:
        """Compare the fingerprints that the image printed with the pinned key, once in an allocation's life."""
        if self._lease.address is not None:
            return
        own = pinned.get_fingerprint()
        for attempt in range(LOG_READS):
            printed = await self._account.api.fingerprints(self._lease.allocation_id)
            if not printed or own in printed:
                return
            if attempt + 1 < LOG_READS:
                await asyncio.sleep(self._limits.poll / 2)
        raise self._mismatch("Its image printed a different one.")

    def _check_provisioning(self, pod: protocol.Pod | None) -> None:
        waited = boot_seconds() - self._began
        if waited <= self._limits.provisioning:
            return
        if pod is not None and (pod.has_ports or pod.status == "running"):
            raise ProviderError(
                f"Port 22 of pod {pod.id} did not become public within {waited:.0f} s.",
                "Release it, and use the secure cloud, whose machines have public ports.",
                code="port_not_public",
            )
        what = "RunPod did not answer" if pod is None else "its ports were not assigned"
        if pod is not None and not pod.has_runtime:
            what = "its image did not start"
        raise ProviderError(
            f"Pod {self._lease.allocation_id} was not ready within {waited:.0f} s: {what}.",
            "Release it and try another GPU or image.",
            code="provisioning_timeout",
        )

    def _report_phase(self, phase: str) -> None:
        self._report(f"{phase}: {boot_seconds() - self._began:.0f} s")

    def _address(self, where: protocol.Address, pinned: asyncssh.SSHKey) -> Address:
        return Address(
            host=where.host,
            port=where.port,
            user=where.user,
            host_key=pinned.export_public_key().decode("ascii").strip(),
            client_key_path=str(self._folder.client_key),
        )

    def _mismatch(self, what: str) -> ProviderError:
        return ProviderError(
            f"Pod {self._lease.allocation_id} does not have the host key that it was ordered with. {what}",
            "Release it: somebody may be intercepting the connection. Nothing was sent to it.",
            code="host_key_mismatch",
        )


async def _host_key(where: protocol.Address, pinned: asyncssh.SSHKey) -> asyncssh.SSHKey | None:
    """The key that the server presents, preferably of the pinned kind; None while it does not answer."""
    own = {algorithm.decode() for algorithm in pinned.sig_algorithms}
    algorithms = sorted(HOST_KEY_ALGORITHMS, key=lambda name: name not in own)
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            return await asyncssh.get_server_host_key(
                where.host, where.port, config=None, server_host_key_algs=algorithms
            )
    except (OSError, asyncssh.Error, TimeoutError):
        return None
