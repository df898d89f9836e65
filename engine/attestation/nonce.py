"""The Verifier's nonces: 32 bytes, used once, by one run, within 120 s.

Age is measured by CLOCK_BOOTTIME: setting the wall clock does not change it, and it goes on while the machine sleeps.
The record of issued nonces is a small file, so that a restarted runner refuses what the first one has accepted; after a
reboot every unused nonce is expired.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from engine.attestation.reasons import refusal
from engine.errors import RefusedError, WireError
from engine.system.clock import boot_id, boot_seconds
from engine.system.files import write_private
from engine.wire import canonical, parse

NONCE_BYTES: Final = 32
NONCE_SECONDS: Final = 120.0
MAX_NONCES: Final = 64
_MAX_STATE_BYTES: Final = 256 * 1024


class _Issued(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    nonce: str
    run_id: str
    boot: str
    at: float
    used: bool = False


class _State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int = 1
    nonces: tuple[_Issued, ...] = ()


class NonceLedger:
    """The nonces that were issued, kept in the file `path` (0600). Safe across threads and processes."""

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = boot_seconds, boot: Callable[[], str] = boot_id
    ) -> None:
        self._path = path
        self._clock = clock
        self._boot = boot

    def issue(self, run_id: str) -> bytes:
        """A fresh nonce for one run; raises `RefusedError` (`nonce_state_damaged`, `nonce_state_unwritable`)."""
        nonce = os.getrandom(NONCE_BYTES)
        issued = _Issued(nonce=_text(nonce), run_id=run_id, boot=self._boot(), at=self._clock())
        with self._locked():
            state = self._read()
            self._write(_State(nonces=(*state.nonces[-(MAX_NONCES - 1) :], issued)))
        return nonce

    def outstanding(self, run_id: str) -> bytes | None:
        """The run's latest nonce that can still be redeemed, for a runner that was restarted."""
        with self._locked():
            for issued in reversed(self._read().nonces):
                if issued.run_id == run_id and not issued.used and not self._expired(issued):
                    return base64.b64decode(issued.nonce)
        return None

    def redeem(self, nonce: bytes, run_id: str) -> None:
        """Use a nonce up: it is recorded as used even if it turns out to be expired.

        Raises `RefusedError`: `nonce_unknown`, `nonce_other_run`, `nonce_replayed`, `nonce_expired`,
        `nonce_state_damaged`, `nonce_state_unwritable` (a use that cannot be recorded is not accepted).
        """
        with self._locked():
            state = self._read()
            issued = next((entry for entry in state.nonces if entry.nonce == _text(nonce)), None)
            if issued is None:
                raise refusal("nonce_unknown")
            if issued.run_id != run_id:
                raise refusal("nonce_other_run")
            if issued.used:
                raise refusal("nonce_replayed")
            used = msgspec.structs.replace(issued, used=True)
            self._write(_State(nonces=tuple(used if entry is issued else entry for entry in state.nonces)))
            if self._expired(issued):
                raise refusal("nonce_expired")

    def _expired(self, issued: _Issued) -> bool:
        return issued.boot != self._boot() or not 0 <= self._clock() - issued.at <= NONCE_SECONDS

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self._path.with_name(f"{self._path.name}.lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> _State:
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_STATE_BYTES)
        except FileNotFoundError:
            return _State()
        try:
            state = msgspec.convert(parse(data), _State, strict=True)
            for issued in state.nonces:
                base64.b64decode(issued.nonce, validate=True)
        except (WireError, msgspec.ValidationError, binascii.Error, ValueError) as error:
            raise refusal("nonce_state_damaged") from error
        return state

    def _write(self, state: _State) -> None:
        try:
            write_private(self._path, canonical(msgspec.to_builtins(state)))
        except OSError as error:
            raise _unwritable(error) from error


def _unwritable(error: OSError) -> RefusedError:
    return refusal("nonce_state_unwritable", error.strerror or "")


def _text(nonce: bytes) -> str:
    return base64.b64encode(nonce).decode()
