"""One listing of the account for all processes of a home: as many as ask at once cost one call between them."""

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
"""Seconds after which whoever waits for another's listing makes his own."""


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A successful listing, true of some moment between `began` and `ended` on the boot clock; `at_utc` is its end.

    `began` is just before its request was sent, a wait for its turn not included.
    """

    pods: tuple[Pod, ...]
    began: float
    ended: float
    at_utc: str


class _Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A call that failed; whoever waited for it while it ran takes its error."""

    code: str
    message: str
    hint: str
    began: float
    ended: float
    retry_after: float | None = None


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    boot: str
    account: str
    listing: Listing | None = None
    failure: _Failure | None = None


class SharedListing:
    """Listings of the account that `api` asks, kept without secrets in the home."""

    def __init__(self, api: PodApi, home: Path) -> None:
        self._api = api
        self._folder = shared_files.folder_of(home)
        self._empty = _Kept(boot=boot_id(), account=api.account(salt_of(home)))

    async def at_least(self, began_after: float) -> Listing:
        """A listing that began at `began_after` on the boot clock or later.

        Raises as `PodApi.list_pods`: an error is never an empty listing.
        """
        found = self._kept().listing
        if found is not None and began_after <= found.began <= boot_seconds():
            return found
        asked = boot_seconds()
        async with shared_files.locked(self._folder / _LOCK, PATIENCE):
            kept = self._kept()
            if kept.listing is not None and began_after <= kept.listing.began <= boot_seconds():
                return kept.listing
            failure = kept.failure
            if failure is not None and began_after <= failure.began and asked <= failure.ended <= boot_seconds():
                raise _error(failure)
            return await self._ask(kept)

    async def _ask(self, kept: _Kept) -> Listing:
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
            self._keep(msgspec.structs.replace(kept, failure=failure))
            raise
        listing = Listing(pods=pods, began=began, ended=boot_seconds(), at_utc=utc_now())
        self._keep(msgspec.structs.replace(kept, listing=listing, failure=None))
        return listing

    async def _list(self) -> tuple[float, tuple[Pod, ...]]:
        if isinstance(self._api, PacedApi):
            return await self._api.list_begun()
        return boot_seconds(), await self._api.list_pods()

    def _kept(self) -> _Kept:
        """What this boot knows of this account; a listing of another account proves nothing here."""
        found = shared_files.read_record(self._folder / FILE, _Kept)
        if found is None or (found.boot, found.account) != (self._empty.boot, self._empty.account):
            return self._empty
        return found

    def _keep(self, kept: _Kept) -> None:
        shared_files.write_record(self._folder / FILE, kept)


def _error(failure: _Failure) -> ProviderError:
    if failure.retry_after is not None:
        return RateLimitedError(failure.retry_after)
    return ProviderError(failure.message, failure.hint, code=failure.code)
