"""The pods of one account: listing them, and proving by two listings that one is gone. An error never means no pods."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from engine.errors import GlasshouseError, ProviderError
from engine.providers.runpod.api.listing import Listing, SharedListing
from engine.providers.runpod.api.prices import SharedPrices
from engine.providers.runpod.api.protocol import Pod, PodApi
from engine.providers.settings import RunPodLimits
from engine.system.clock import boot_seconds

HOPELESS: Final = frozenset({"api_key_missing", "api_key_rejected", "api_gone", "extra_missing"})
"""Codes of errors that persist however often the call is repeated."""
ATTEMPTS: Final = 3
"""How often a call with such a code is repeated before the release gives up."""
FIRST_PAUSE: Final = 0.5
MOST_PAUSE: Final = 30.0
BY_HAND: Final = "https://console.runpod.io/pods"


class Account:
    """The pods of one RunPod account, which `identity` distinguishes from others; see `account_of`."""

    def __init__(
        self, api: PodApi, listing: SharedListing, prices: SharedPrices, limits: RunPodLimits, identity: str
    ) -> None:
        self.api = api
        self.identity = identity
        self.prices = prices
        self._listing = listing
        self._limits = limits

    async def listed(self, began_after: float | None = None) -> Listing:
        """A successful listing that began no earlier than `began_after` on the boot clock, by default now."""
        return await self._listing.at_least(boot_seconds() if began_after is None else began_after)

    async def second_listing(self, earlier: Listing) -> Listing:
        """Another listing, begun at least `limits.listings_apart` after `earlier`, so that the two are a proof."""
        due = earlier.began + self._limits.listings_apart
        await asyncio.sleep(max(0.0, due - boot_seconds()))
        return await self.listed(due)

    async def is_gone(self, pod_id: str, absent: Listing) -> bool:
        """True when the pod, which the listing `absent` lacks, is missing from a second one too."""
        return all(pod.id != pod_id for pod in (await self.second_listing(absent)).pods)

    async def terminate(self, name: str, ids: Iterable[str] = (), price: float | None = None) -> bool:
        """Terminate every pod called `name` and those in `ids`; returns once two later listings lack them.

        True if RunPod answered a request to terminate each with a success, and not that it does not know the pod.
        After `limits.terminate` it raises `leaked` with the pods, their price and where to terminate them by hand.
        """
        return await _Termination(self, self._limits, name, ids, price).run()


def coalescing_delay(limits: RunPodLimits) -> float:
    """Seconds to wait before a listing right after a change, so that several runs at this point share one listing."""
    return min(1.0, limits.poll / 4)


class _Termination:
    """One release: termination is requested again as long as a pod is listed, until two listings lack all of them."""

    def __init__(
        self, account: Account, limits: RunPodLimits, name: str, ids: Iterable[str], price: float | None
    ) -> None:
        self._account = account
        self._limits = limits
        self._name = name
        self._ids = set(ids)
        self._price = price
        self._left = set(self._ids)
        self._confirmed: set[str] = set()
        self._until = boot_seconds() + limits.terminate
        self._last_error: GlasshouseError | None = None
        self._hopeless = 0

    async def run(self) -> bool:
        await self._terminate(self._ids)
        await asyncio.sleep(coalescing_delay(self._limits))
        absent: Listing | None = None
        began_after, pause = boot_seconds(), FIRST_PAUSE
        while True:
            listing = await self._listing(began_after)
            if listing is None:
                await self._rest(pause)
                pause = min(2 * pause, MOST_PAUSE)
                continue
            present = [pod for pod in listing.pods if pod.name == self._name or pod.id in self._ids]
            if present:
                absent = None
                self._note(present)
                await self._terminate(self._left)
                await self._rest(pause)
                began_after, pause = boot_seconds(), min(2 * pause, MOST_PAUSE)
                continue
            if absent is not None and listing.began - absent.began >= self._limits.listings_apart:
                return bool(self._ids) and self._confirmed >= self._ids
            absent = absent or listing
            began_after = absent.began + self._limits.listings_apart
            await asyncio.sleep(max(0.0, began_after - boot_seconds()))

    async def _terminate(self, ids: Iterable[str]) -> None:
        """Request termination. The answer proves nothing (the SDK hides even 429 and 500): the listings decide."""
        for pod_id in sorted(ids):
            try:
                if await self._account.api.terminate_pod(pod_id):
                    self._confirmed.add(pod_id)
            except GlasshouseError as error:
                self._last_error = error

    async def _listing(self, began_after: float) -> Listing | None:
        try:
            listing = await self._account.listed(began_after)
        except GlasshouseError as error:
            self._last_error = error
            self._hopeless = self._hopeless + 1 if error.code in HOPELESS else 0
            if self._hopeless >= ATTEMPTS:
                raise self._leaked() from error
            return None
        self._hopeless = 0
        return listing

    def _note(self, present: list[Pod]) -> None:
        self._ids |= {pod.id for pod in present}
        self._left = {pod.id for pod in present}
        prices = [pod.price_per_hour for pod in present if pod.price_per_hour]
        self._price = sum(prices) if prices else self._price

    async def _rest(self, seconds: float) -> None:
        """Wait for the next attempt; raises `leaked` when no time is left for one."""
        left = self._until - boot_seconds()
        if left <= 0:
            raise self._leaked() from self._last_error
        await asyncio.sleep(min(seconds, left))

    def _leaked(self) -> ProviderError:
        pods = ", ".join(sorted(self._left)) or "with an unknown id"
        price = "an unknown price" if self._price is None else f"${self._price:.2f}"
        why = f" ({self._last_error.code})" if self._last_error else ""
        return ProviderError(
            f"Pod {pods} of {self._name} is not proven gone{why} and may still cost {price} an hour.",
            f"Terminate it by hand at {BY_HAND}, then run `glasshouse cleanup`.",
            code="leaked",
        )
