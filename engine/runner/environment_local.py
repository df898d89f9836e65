"""The reference value of the environment that the local allocation uses: measured here, from the same files.

Hashing 1.5 GB takes seconds, so the result is cached with a fingerprint of every file's path, size, inode and times; a
changed fingerprint makes it measure again.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

import msgspec

from engine.attestation.measurement import listed_environment
from engine.errors import GlasshouseError, RefusedError, StoreError
from engine.system.files import write_private

CACHE: Final = "environment.json"
LOWEST_PRIORITY: Final = 19


class EnvironmentReference:
    """Measures in a thread of the lowest priority, so that neither staging nor a segment waits for it."""

    def __init__(self, home: Path, sites: tuple[str, ...]) -> None:
        self._home = home
        self._sites = sites
        self._digest = ""
        self._error: GlasshouseError | None = None
        self._thread = threading.Thread(target=self._measure, name="reference", daemon=True)
        self._thread.start()

    def _measure(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        try:
            self._digest = environment_reference(self._home, self._sites)
        except GlasshouseError as error:
            self._error = error
        except OSError as error:
            self._error = RefusedError(
                f"The environment changed while it was measured: {_named(error)}.",
                "Wait until no package is being installed, then start the run again.",
                code="environment_unreadable",
            )

    def result(self) -> str:
        """Wait for the digest; raises what `environment_reference` raises."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digest


def _named(error: OSError) -> str:
    why = error.strerror or type(error).__name__
    return why if error.filename is None else f"{error.filename}: {why}"


class _Cached(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    fingerprint: str
    digest: str


def environment_reference(home: Path, sites: tuple[str, ...]) -> str:
    """SHA-256 in hex over interpreter, standard library and `sites`.

    Raises `RefusedError` (`environment_unreadable`), `StoreError` (`store_unwritable`).
    """
    listing = listed_environment(sites)
    cache = home / CACHE
    try:
        cached = msgspec.json.decode(cache.read_bytes(), type=_Cached)
        if cached.fingerprint == listing.fingerprint:
            return cached.digest
    except (OSError, msgspec.DecodeError):
        pass  # no cache, or one of another format: measure again
    digest = listing.measure().digest
    try:
        write_private(cache, msgspec.json.encode(_Cached(fingerprint=listing.fingerprint, digest=digest)))
    except OSError as error:
        raise StoreError(
            f"{cache} cannot be written: {error.strerror}.",
            "Free some space or choose another --home.",
            code="store_unwritable",
        ) from error
    return digest
