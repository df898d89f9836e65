"""Listings of the account, shared by all processes of a home: simultaneous requests cost one call together."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from engine.errors import ProviderError
from engine.providers.runpod.api import shared_files
from engine.providers.runpod.api.protocol import Pod, PodApi, RateLimitedError
from engine.providers.runpod.api.rate_limit import PacedApi
from engine.store.salt import salt_of
from engine.system.clock import boot_id, boot_seconds
from engine.wire import utc_now

FILE: Final = "listing.json"
_LOCK: Final = "listing.lock"
PATIENCE: Final = 60.0
"""Seconds after which a process that waits for another one's listing makes its own."""


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A successful listing: the state at a moment between `began` and `ended` on the boot clock; `at_utc` is its end.

    `began` is just before the request was sent, after any wait for the rate limit.
    """

    pods: tuple[Pod, ...]
    began: float
    ended: float
    at_utc: str


class _Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A call that failed; a process that was waiting for it raises the same error."""

    code: str
    message: str
    hint: str
    began: float
    ended: float
    retry_after: float | None = None


class _Cache(msgspec.Struct, frozen=True, kw_only=True):
    boot: str
    account: str
    listing: Listing | None = None
    failure: _Failure | None = None


class SharedListing:
    """Listings of the account of `api`, cached in the home without secrets."""

    def __init__(self, api: PodApi, home: Path) -> None:
        self._api = api
        self._folder = shared_files.folder_of(home)
        self._empty = _Cache(boot=boot_id(), account=api.account(salt_of(home)))

    async def at_least(self, began_after: float) -> Listing:
        """A listing that began at `began_after` on the boot clock or later.

        Raises as `PodApi.list_pods`: an error is never an empty listing.
        """
        listing = self._cache().listing
        if listing is not None and began_after <= listing.began <= boot_seconds():
            return listing
        waiting_since = boot_seconds()
        async with shared_files.locked(self._folder / _LOCK, PATIENCE):
            cache = self._cache()
            if cache.listing is not None and began_after <= cache.listing.began <= boot_seconds():
                return cache.listing
            failure = cache.failure
            if (
                failure is not None
                and began_after <= failure.began
                and waiting_since <= failure.ended <= boot_seconds()
            ):
                raise _error(failure)
            return await self._request(cache)

    async def _request(self, cache: _Cache) -> Listing:
        began = boot_seconds()
        try:
            began, pods = await self._list()
        except ProviderError as error:
            failure = _Failure(
                code=error.code,
                message=error.message,
                hint=error.hint,
                began=began,
                ended=boot_seconds(),
                retry_after=error.retry_after if isinstance(error, RateLimitedError) else None,
            )
            self._write(msgspec.structs.replace(cache, failure=failure))
            raise
        listing = Listing(pods=pods, began=began, ended=boot_seconds(), at_utc=utc_now())
        self._write(msgspec.structs.replace(cache, listing=listing, failure=None))
        return listing

    async def _list(self) -> tuple[float, tuple[Pod, ...]]:
        if isinstance(self._api, PacedApi):
            return await self._api.list_begun()
        return boot_seconds(), await self._api.list_pods()

    def _cache(self) -> _Cache:
        """The cache of this boot and this account; a listing of another account proves nothing here."""
        cache = shared_files.read_record(self._folder / FILE, _Cache)
        if cache is None or (cache.boot, cache.account) != (self._empty.boot, self._empty.account):
            return self._empty
        return cache

    def _write(self, cache: _Cache) -> None:
        shared_files.write_record(self._folder / FILE, cache)


def _error(failure: _Failure) -> ProviderError:
    if failure.retry_after is not None:
        return RateLimitedError(failure.retry_after)
    return ProviderError(failure.message, failure.hint, code=failure.code)
