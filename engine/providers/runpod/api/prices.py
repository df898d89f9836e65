"""The catalogue of GPUs for all processes of a home: runs that start together ask for prices once."""

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
"""Age up to which a catalogue is good for a quote; what a pod costs is looked at again when it is listed."""
_LOCK: Final = "prices.lock"
_PATIENCE: Final = 60.0


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    boot: str
    account: str
    began: float
    offers: tuple[GpuOffer, ...]


class SharedPrices:
    """The catalogue that `api` tells, kept in the home for half a minute."""

    def __init__(self, api: PodApi, home: Path) -> None:
        self._api = api
        self._folder = shared_files.folder_of(home)
        self._account = api.account(salt_of(home))

    async def offers(self) -> tuple[GpuOffer, ...]:
        """Every type of GPU with its prices, at most half a minute old; raises as `PodApi.list_gpus`."""
        found = self._kept()
        if found is not None:
            return found
        async with shared_files.locked(self._folder / _LOCK, _PATIENCE):
            found = self._kept()
            if found is not None:
                return found
            began = boot_seconds()
            offers = await self._api.list_gpus()
            kept = _Kept(boot=boot_id(), account=self._account, began=began, offers=offers)
            shared_files.write_record(self._folder / FILE, kept)
            return offers

    def _kept(self) -> tuple[GpuOffer, ...] | None:
        found = shared_files.read_record(self._folder / FILE, _Kept)
        if found is None or (found.boot, found.account) != (boot_id(), self._account):
            return None
        return found.offers if 0 <= boot_seconds() - found.began <= FRESH_SECONDS else None
