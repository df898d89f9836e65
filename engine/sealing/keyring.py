"""The operator's keys at rest: a signing key (Ed25519) and a recipient key (X25519), apart.

PKCS8 PEM files of mode 0600 in a folder of mode 0700, and `public.json` for those who only need the public
halves. Every change is staged whole and then moved in; whoever opens the folder next finishes an interrupted
move.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.errors import SealingError
from engine.sealing.files import sync_folder, write_private
from engine.sealing.pem import (
    fingerprint,
    is_encrypted,
    key_id,
    load_ed25519,
    load_x25519,
    private_pem,
    read_pem,
)
from engine.sealing.ring import INCOMING, PUBLIC_FILE, PublicKeys, parse_public
from engine.wire import canonical, utc_now

SIGNING_FILE: Final = "signing.pem"
RECIPIENT_FILE: Final = "recipient.pem"

_STAGING: Final = ".staging-"
_LOCK: Final = ".lock"


class KeyStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What can be told about the operator's keys without a passphrase.

    Fingerprints are None when there are none.
    """

    present: bool
    encrypted: bool = False
    created: str | None = None
    signing_fingerprint: str | None = None
    recipient_fingerprint: str | None = None


@dataclass(frozen=True)
class OperatorKeys:
    """The operator's unlocked keys.

    `created` is UTC; `encrypted` tells whether the files are under a passphrase.
    """

    signing: Ed25519PrivateKey = field(repr=False)
    recipient: X25519PrivateKey = field(repr=False)
    created: str
    encrypted: bool

    @classmethod
    def generate(cls) -> OperatorKeys:
        """New keys, in memory only."""
        return cls(Ed25519PrivateKey.generate(), X25519PrivateKey.generate(), utc_now(), encrypted=False)

    @classmethod
    def ensure(cls, folder: Path, passphrase: str | None = None) -> OperatorKeys:
        """The keys in `folder`, made first (under `passphrase`, if any) when there are none.

        Raises `SealingError` as `load` does, and `key_folder_unusable`.
        """
        with locked(folder):
            if not (folder / SIGNING_FILE).exists():
                install(folder, cls.generate(), passphrase)
            return _load(folder, passphrase)

    @classmethod
    def load(cls, folder: Path, passphrase: str | None = None) -> OperatorKeys:
        """The keys in `folder`.

        Raises `SealingError`: `key_missing`, `key_invalid`, `key_permissions`, `key_mismatch`,
        `key_passphrase_needed`, `key_passphrase_wrong`.
        """
        if not folder.is_dir():
            raise _missing()
        with locked(folder):
            return _load(folder, passphrase)

    @property
    def signing_public(self) -> bytes:
        """The raw public signing key (32 bytes)."""
        return self.signing.public_key().public_bytes_raw()

    @property
    def recipient_public(self) -> bytes:
        """The raw public recipient key (32 bytes)."""
        return self.recipient.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        """The id of the signing key: SHA-256 in hex over its raw public half."""
        return key_id(self.signing_public)

    @property
    def signing_fingerprint(self) -> str:
        """The signing key's name for people."""
        return fingerprint(self.signing_public)

    @property
    def recipient_fingerprint(self) -> str:
        """The recipient key's name for people."""
        return fingerprint(self.recipient_public)


def _missing() -> SealingError:
    return SealingError(
        "There are no operator keys here.",
        "Start a run to make them, or use `glasshouse key restore`.",
        code="key_missing",
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the key folder (made 0700) alone, with any interrupted change finished.

    Raises `SealingError` (`key_folder_unusable`).
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SealingError(
            f"The key folder cannot be used: {error.strerror}.",
            "Choose another --home.",
            code="key_folder_unusable",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _finish(folder)
        yield
    finally:
        os.close(descriptor)


def _finish(folder: Path) -> None:
    for staging in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(staging)
    incoming = folder / INCOMING
    if incoming.is_dir():
        for file in sorted(incoming.iterdir()):
            file.replace(folder / file.name)
        incoming.rmdir()
        sync_folder(folder)


def _replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    staging = folder / f"{_STAGING}{secrets.token_hex(4)}"
    try:
        staging.mkdir(mode=0o700)
        for name, data in files.items():
            write_private(staging / name, data)
        staging.rename(folder / INCOMING)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise SealingError(
            f"The keys cannot be written: {error.strerror}.",
            "Free some space or choose another --home.",
            code="key_folder_unusable",
        ) from error
    _finish(folder)


def install(folder: Path, keys: OperatorKeys, passphrase: str | None) -> None:
    """Put `keys` into a folder that the caller holds by `locked`, all files or none."""
    public = PublicKeys(created=keys.created, signing=keys.signing_public.hex(), recipient=keys.recipient_public.hex())
    _replace_files(
        folder,
        {
            SIGNING_FILE: private_pem(keys.signing, passphrase),
            RECIPIENT_FILE: private_pem(keys.recipient, passphrase),
            PUBLIC_FILE: canonical(msgspec.to_builtins(public)),
        },
    )


def read_public(folder: Path) -> PublicKeys:
    """The public halves as `public.json` has them; raises `SealingError` (`key_missing`, `key_invalid`)."""
    return parse_public(read_pem(folder / PUBLIC_FILE))


def _load(folder: Path, passphrase: str | None) -> OperatorKeys:
    if not (folder / SIGNING_FILE).exists():
        raise _missing()
    signing_pem, recipient_pem = read_pem(folder / SIGNING_FILE), read_pem(folder / RECIPIENT_FILE)
    public = read_public(folder)
    keys = OperatorKeys(
        signing=load_ed25519(signing_pem, passphrase, SIGNING_FILE),
        recipient=load_x25519(recipient_pem, passphrase, RECIPIENT_FILE),
        created=public.created,
        encrypted=is_encrypted(signing_pem),
    )
    if (keys.signing_public.hex(), keys.recipient_public.hex()) != (public.signing, public.recipient):
        raise SealingError(
            f"The keys are not those of {PUBLIC_FILE}.",
            "Restore the keys from a backup.",
            code="key_mismatch",
        )
    return keys


def status(folder: Path) -> KeyStatus:
    """What is in the key folder, without a passphrase; raises `SealingError` as `OperatorKeys.load` does."""
    if not folder.is_dir():
        return KeyStatus(present=False)
    with locked(folder):
        if not (folder / SIGNING_FILE).exists():
            return KeyStatus(present=False)
        public = read_public(folder)
        return KeyStatus(
            present=True,
            encrypted=is_encrypted(read_pem(folder / SIGNING_FILE)),
            created=public.created,
            signing_fingerprint=fingerprint(bytes.fromhex(public.signing)),
            recipient_fingerprint=fingerprint(bytes.fromhex(public.recipient)),
        )
