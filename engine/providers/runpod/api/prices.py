"""The catalogue of GPUs, shared by all processes of a home: runs that start together request prices once."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from engine.providers.runpod.api import shared_files
from engine.providers.runpod.api.protocol import GpuOffer, PodApi
from engine.store.salt import salt_of
from engine.system.clock import boot_id, boot_seconds

FILE: Final = "prices.json"
FRESH_SECONDS: Final = 30.0
"""Age up to which a catalogue may be quoted; a pod's actual price is checked again when it is listed."""
_LOCK: Final = "prices.lock"
_PATIENCE: Final = 60.0


class _Cache(msgspec.Struct, frozen=True, kw_only=True):
    boot: str
    account: str
    began: float
    offers: tuple[GpuOffer, ...]


class SharedPrices:
    """The catalogue of `api`, cached in the home for `FRESH_SECONDS`."""

    def __init__(self, api: PodApi, home: Path) -> None:
        self._api = api
        self._folder = shared_files.folder_of(home)
        self._account = api.account(salt_of(home))

    async def offers(self) -> tuple[GpuOffer, ...]:
        """Every type of GPU with its prices, at most half a minute old; raises as `PodApi.list_gpus`."""
        cached = self._cached()
        if cached is not None:
            return cached
        async with shared_files.locked(self._folder / _LOCK, _PATIENCE):
            cached = self._cached()
            if cached is not None:
                return cached
            began = boot_seconds()
            offers = await self._api.list_gpus()
            cache = _Cache(boot=boot_id(), account=self._account, began=began, offers=offers)
            shared_files.write_record(self._folder / FILE, cache)
            return offers

    def _cached(self) -> tuple[GpuOffer, ...] | None:
        cache = shared_files.read_record(self._folder / FILE, _Cache)
        if cache is None or (cache.boot, cache.account) != (boot_id(), self._account):
            return None
        return cache.offers if 0 <= boot_seconds() - cache.began <= FRESH_SECONDS else None
