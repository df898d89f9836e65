"""The account as two calls see it: what is listed, and what is proven gone. An error is never an empty list."""

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
"""Codes that another attempt will not change."""
ATTEMPTS: Final = 3
"""How often a hopeless call is tried before the release is given up."""
FIRST_PAUSE: Final = 0.5
MOST_PAUSE: Final = 30.0
BY_HAND: Final = "https://console.runpod.io/pods"


class Account:
    """The pods of one RunPod account. `identity` tells it from another, as `account_of` does."""

    def __init__(
        self, api: PodApi, listing: SharedListing, prices: SharedPrices, limits: RunPodLimits, identity: str
    ) -> None:
        self.api = api
        self.identity = identity
        self.prices = prices
        self._listing = listing
        self._limits = limits

    async def listed(self, began_after: float | None = None) -> Listing:
        """A successful listing that began after `began_after` on the boot clock, by default now."""
        return await self._listing.at_least(boot_seconds() if began_after is None else began_after)

    async def later(self, earlier: Listing) -> Listing:
        """A second listing, begun late enough after `earlier` for the two to be a proof."""
        due = earlier.began + self._limits.listings_apart
        await asyncio.sleep(max(0.0, due - boot_seconds()))
        return await self.listed(due)

    async def is_gone(self, pod_id: str, absent: Listing) -> bool:
        """True when the pod, not in the listing `absent`, is not in a second one either."""
        return all(pod.id != pod_id for pod in (await self.later(absent)).pods)

    async def end(self, name: str, ids: Iterable[str] = (), price: float | None = None) -> None:
        """End every pod called `name` and those in `ids`; returns when two listings, begun afterwards, lack them.

        Raises `leaked` with the pods, their price and where to end them by hand when `limits.terminate` has passed.
        """
        await _Ending(self, self._limits, name, ids, price).run()


def together(limits: RunPodLimits) -> float:
    """Seconds to wait before a listing that comes right after a change, so that runs at the same point share one."""
    return min(1.0, limits.poll / 4)


class _Ending:
    """One release: termination asked for again and again while the pod is listed, until two clean listings."""

    def __init__(
        self, account: Account, limits: RunPodLimits, name: str, ids: Iterable[str], price: float | None
    ) -> None:
        self._account = account
        self._limits = limits
        self._name = name
        self._ids = set(ids)
        self._price = price
        self._left = set(self._ids)
        self._until = boot_seconds() + limits.terminate
        self._failed: GlasshouseError | None = None
        self._hopeless = 0

    async def run(self) -> None:
        await self._terminate(self._ids)
        await asyncio.sleep(together(self._limits))
        absent: Listing | None = None
        after, pause = boot_seconds(), FIRST_PAUSE
        while True:
            listing = await self._look(after)
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
                after, pause = boot_seconds(), min(2 * pause, MOST_PAUSE)
                continue
            if absent is not None and listing.began - absent.began >= self._limits.listings_apart:
                return
            absent = absent or listing
            after = absent.began + self._limits.listings_apart
            await asyncio.sleep(max(0.0, after - boot_seconds()))

    async def _terminate(self, ids: Iterable[str]) -> None:
        """Ask; whatever comes back is not believed, the listings decide."""
        for pod_id in sorted(ids):
            try:
                await self._account.api.terminate_pod(pod_id)
            except GlasshouseError as error:
                self._failed = error

    async def _look(self, after: float) -> Listing | None:
        try:
            listing = await self._account.listed(after)
        except GlasshouseError as error:
            self._failed = error
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
        """Wait for the next attempt; raises `leaked` when there is none."""
        left = self._until - boot_seconds()
        if left <= 0:
            raise self._leaked() from self._failed
        await asyncio.sleep(min(seconds, left))

    def _leaked(self) -> ProviderError:
        pods = ", ".join(sorted(self._left)) or "whose id is not known"
        price = "an unknown price" if self._price is None else f"${self._price:.2f}"
        why = f" ({self._failed.code})" if self._failed else ""
        return ProviderError(
            f"Pod {pods} of {self._name} is not proven gone{why} and may cost {price} an hour.",
            f"End it by hand at {BY_HAND}, then run `glasshouse cleanup`.",
            code="leaked",
        )
