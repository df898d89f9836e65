"""The public side of the operator's keys over time: the current and past signing and recipient keys, and the signed
statements about them.

`ring.json` exists from the first rotation on; before that `public.json` says everything. It is one file, so that
readers see a consistent state of it without a lock and without a passphrase.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import SealingError, WireError
from engine.sealing.manifest import is_digest
from engine.sealing.pem import key_id, read_pem
from engine.wire import canonical, parse

RING_FILE: Final = "ring.json"
PUBLIC_FILE: Final = "public.json"
INCOMING: Final = ".incoming"
MAX_RING_BYTES: Final = 1024 * 1024
_VERSION: Final = 1
_UTC: Final = re.compile(r"[12][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")


class PublicKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The public halves in use, raw and in hex, as `public.json` holds them. `created` is UTC."""

    version: int = 1
    created: str
    signing: str
    recipient: str


class PastKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that was in use from `made` to `retired` (UTC); `public` is raw, in hex."""

    public: str
    made: str
    retired: str

    @property
    def key_id(self) -> str:
        """SHA-256 in hex over the raw public key."""
        return key_id(bytes.fromhex(self.public))


class Ring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys in use and those before them, newest first, with the signed statements about them, oldest first.

    Public halves are raw, in hex; times are UTC. `statements` are DSSE envelopes, which are not verified here.
    """

    version: int = _VERSION
    signing: str
    signing_made: str
    recipient: str
    recipient_made: str
    past_signing: tuple[PastKey, ...] = ()
    past_recipients: tuple[PastKey, ...] = ()
    statements: tuple[dict[str, Any], ...] = ()

    @classmethod
    def fresh(cls, public: PublicKeys) -> Ring:
        """The ring of keys that were never rotated."""
        return cls(
            signing=public.signing,
            signing_made=public.created,
            recipient=public.recipient,
            recipient_made=public.created,
        )

    @property
    def has_history(self) -> bool:
        """True if it contains more than `public.json`."""
        return bool(self.past_signing or self.past_recipients or self.statements)

    @property
    def signing_keys(self) -> frozenset[str]:
        """Every signing key, current and past, raw and in hex."""
        return frozenset({self.signing, *(past.public for past in self.past_signing)})

    @property
    def recipient_keys(self) -> frozenset[str]:
        """Every recipient key, current and past, raw and in hex."""
        return frozenset({self.recipient, *(past.public for past in self.past_recipients)})

    def with_history_of(self, other: Ring, *, at: str) -> Ring:
        """This ring with the former signing keys and statements of `other` added, if it is the same operator's.

        Unchanged if the two share no signing key. `at` (UTC) is when the current keys of `other` are retired.
        """
        if not self.signing_keys & other.signing_keys:
            return self
        retired = PastKey(public=other.signing, made=other.signing_made, retired=at)
        known = self.signing_keys
        past = tuple(key for key in (retired, *other.past_signing) if key.public not in known)
        statements = tuple(envelope for envelope in other.statements if envelope not in self.statements)
        return msgspec.structs.replace(
            self, past_signing=past + self.past_signing, statements=self.statements + statements
        )

    def to_bytes(self) -> bytes:
        """The file; raises `SealingError` (`key_ring_full`)."""
        data = canonical(msgspec.to_builtins(self))
        if len(data) > MAX_RING_BYTES:
            raise SealingError(
                "The record of former keys has reached its maximum size.", "Start a new --home.", code="key_ring_full"
            )
        return data


def damaged(name: str) -> SealingError:
    """The error for a public file that is not valid."""
    return SealingError(f"{name} is damaged.", "Restore the keys from a backup.", code="key_invalid")


def parse_ring(data: bytes | str) -> Ring:
    """A ring from its bytes; raises `SealingError` (`key_invalid`)."""
    try:
        ring = msgspec.convert(parse(data), Ring, strict=True)
    except (WireError, ValueError) as error:
        raise damaged(RING_FILE) from error
    if not (ring.version == _VERSION and _distinct(ring.signing, ring.past_signing)):
        raise damaged(RING_FILE)
    dates = [ring.signing_made, ring.recipient_made]
    dates += [date for past in (*ring.past_signing, *ring.past_recipients) for date in (past.made, past.retired)]
    if not (_distinct(ring.recipient, ring.past_recipients) and all(map(is_utc_text, dates))):
        raise damaged(RING_FILE)
    return ring


def is_utc_text(text: str) -> bool:
    """True for a UTC time in the form that we write, in a year from 1000 to 2999: date arithmetic cannot overflow
    then.
    """
    try:
        return _UTC.fullmatch(text) is not None and bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def _distinct(current: str, past: Iterable[PastKey]) -> bool:
    publics = [current, *(key.public for key in past)]
    return all(map(is_digest, publics)) and len(set(publics)) == len(publics)


def parse_public(data: bytes) -> PublicKeys:
    """`public.json` from its bytes; raises `SealingError` (`key_invalid`)."""
    try:
        public = msgspec.convert(parse(data), PublicKeys, strict=True)
    except (WireError, ValueError) as error:
        raise damaged(PUBLIC_FILE) from error
    is_valid = is_digest(public.signing) and is_digest(public.recipient) and is_utc_text(public.created)
    if not (public.version == 1 and is_valid):
        raise damaged(PUBLIC_FILE)
    return public


def _committed(folder: Path, name: str) -> Path | None:
    """Where the newest committed version of a file is: a change that is not moved into place yet is committed too."""
    for place in (folder / INCOMING / name, folder / name):
        if place.exists():
            return place
    return None


def _read(folder: Path, name: str) -> bytes | None:
    for _ in range(100):  # a change may move the file between the check and the read
        place = _committed(folder, name)
        if place is None:
            return None
        try:
            return read_pem(place, limit=MAX_RING_BYTES)
        except SealingError:
            if place.exists():
                raise
    raise damaged(name)


def read_ring(folder: Path) -> Ring | None:
    """A consistent state of a key folder's ring, without lock, passphrase or private key; None if there are no keys.

    Raises `SealingError` (`key_invalid`, `key_permissions`, `key_missing`, `key_folder_unusable`).
    """
    try:
        return _read_ring(folder)
    except OSError as error:
        raise SealingError(
            f"The key folder cannot be read: {error.strerror}.", "Choose another --home.", code="key_folder_unusable"
        ) from error


def _read_ring(folder: Path) -> Ring | None:
    while True:
        data = _read(folder, RING_FILE)
        if data is not None:
            return parse_ring(data)
        public = _read(folder, PUBLIC_FILE)
        if _committed(folder, RING_FILE) is None:  # else the first rotation happened between the two reads
            return None if public is None else Ring.fresh(parse_public(public))
