"""The operator's keys at rest: a signing key (Ed25519) and a recipient key (X25519), apart.

PKCS8 PEM files of mode 0600 in a folder of mode 0700: the keys in use, and the former recipient keys, so that what was
sealed to them still opens. Former signing keys leave only their public half, in `ring.json`. Every change is staged
whole and then moved in; whoever opens the folder next finishes an interrupted move.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.errors import RefusedError, SealingError
from engine.sealing.key_generations import INCOMING, PUBLIC_FILE, RING_FILE, PublicKeys, Ring, parse_public, read_ring
from engine.sealing.pem import (
    fingerprint,
    is_encrypted,
    key_id,
    load_ed25519,
    load_x25519,
    private_pem,
    read_pem,
)
from engine.system.files import overwrite, sync_folder, write_private
from engine.wire import canonical, utc_now

SIGNING_FILE: Final = "signing.pem"
RECIPIENT_FILE: Final = "recipient.pem"

_STAGING: Final = ".staging-"
_LOCK: Final = ".lock"
_PAST_RECIPIENT: Final = "recipient-*.pem"

OpenedT = TypeVar("OpenedT")


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

    `ring` has their public side and its history; `past_recipients` are the former recipient keys in its order;
    `encrypted` tells whether the files are under a passphrase.
    """

    signing: Ed25519PrivateKey = field(repr=False)
    recipient: X25519PrivateKey = field(repr=False)
    ring: Ring
    encrypted: bool
    past_recipients: tuple[X25519PrivateKey, ...] = field(default=(), repr=False)

    @classmethod
    def generate(cls) -> OperatorKeys:
        """New keys, in memory only."""
        signing, recipient = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
        return cls(signing, recipient, Ring.fresh(public_of(signing, recipient, utc_now())), encrypted=False)

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
    def created(self) -> str:
        """When the signing key was made (UTC)."""
        return self.ring.signing_made

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

    def with_recipient(self, opener: Callable[[X25519PrivateKey], OpenedT]) -> OpenedT:
        """What `opener` makes of the recipient key that fits, the present one tried first.

        A sealed adapter does not name its key; another key fails at unwrapping, before anything is decrypted. Raises
        as `opener` does: `adapter_wrong_key` when no key fits.
        """
        *others, last = (self.recipient, *self.past_recipients)
        for key in others:
            try:
                return opener(key)
            except RefusedError as error:
                if error.code != "adapter_wrong_key":
                    raise
        return opener(last)

    def is_consistent(self) -> bool:
        """True when the private halves are those that `ring` names."""
        past = tuple(key.public_key().public_bytes_raw().hex() for key in self.past_recipients)
        named = (self.ring.signing, self.ring.recipient, tuple(key.public for key in self.ring.past_recipients))
        return named == (self.signing_public.hex(), self.recipient_public.hex(), past)


def public_of(signing: Ed25519PrivateKey, recipient: X25519PrivateKey, created: str) -> PublicKeys:
    """The public halves of a pair."""
    return PublicKeys(
        created=created,
        signing=signing.public_key().public_bytes_raw().hex(),
        recipient=recipient.public_key().public_bytes_raw().hex(),
    )


def past_recipient_file(public: str) -> str:
    """The file of a former recipient key (raw public half, in hex)."""
    return f"recipient-{key_id(bytes.fromhex(public))}.pem"


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
        if (incoming / SIGNING_FILE).exists():
            _scrub(folder / SIGNING_FILE)
        for file in sorted(incoming.iterdir()):
            file.replace(folder / file.name)
        ring = read_ring(folder)
        kept = {past_recipient_file(past.public) for past in ring.past_recipients} if ring else set()
        for file in folder.glob(_PAST_RECIPIENT):
            if file.name not in kept:
                file.unlink()
        incoming.rmdir()
        sync_folder(folder)


def _scrub(path: Path) -> None:
    """Overwrite a signing key that is about to be replaced; a name that shares the file elsewhere keeps it."""
    if not path.exists() or path.is_symlink():
        return
    path.chmod(0o600)
    if path.stat().st_nlink == 1:
        overwrite(path)


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
    """Put `keys` with their history into a folder that the caller holds by `locked`, all files or none."""
    public = public_of(keys.signing, keys.recipient, keys.created)
    files = {
        SIGNING_FILE: private_pem(keys.signing, passphrase),
        RECIPIENT_FILE: private_pem(keys.recipient, passphrase),
        PUBLIC_FILE: canonical(msgspec.to_builtins(public)),
    }
    for past, private in zip(keys.ring.past_recipients, keys.past_recipients, strict=True):
        files[past_recipient_file(past.public)] = private_pem(private, passphrase)
    if keys.ring.has_history or (folder / RING_FILE).exists():
        files[RING_FILE] = keys.ring.to_bytes()
    _replace_files(folder, files)


def change(
    folder: Path,
    passphrase: str | None,
    changed: Callable[[OperatorKeys], OperatorKeys],
    *,
    new_passphrase: str | None = None,
) -> OperatorKeys:
    """Put `changed` of the keys in `folder` in their place; returns the new ones.

    They stay under `passphrase` where they were under it, unless there is a new one. Killed at any moment, the folder
    has the old keys or the new ones. Raises `SealingError` as `OperatorKeys.load` does, and as `changed` does; nothing
    changes then.
    """
    if not folder.is_dir():
        raise _missing()
    with locked(folder):
        keys = _load(folder, passphrase)
        kept = passphrase if keys.encrypted else None
        install(folder, changed(keys), kept if new_passphrase is None else new_passphrase)
        return _load(folder, kept if new_passphrase is None else new_passphrase)


def read_public(folder: Path) -> PublicKeys:
    """The public halves as `public.json` has them; raises `SealingError` (`key_missing`, `key_invalid`)."""
    return parse_public(read_pem(folder / PUBLIC_FILE))


def _load(folder: Path, passphrase: str | None) -> OperatorKeys:
    if not (folder / SIGNING_FILE).exists():
        raise _missing()
    signing_pem, recipient_pem = read_pem(folder / SIGNING_FILE), read_pem(folder / RECIPIENT_FILE)
    public, ring = read_public(folder), read_ring(folder)
    signing = load_ed25519(signing_pem, passphrase, SIGNING_FILE)
    recipient = load_x25519(recipient_pem, passphrase, RECIPIENT_FILE)
    ring = ring or Ring.fresh(public)
    names = [past_recipient_file(past.public) for past in ring.past_recipients]
    past = tuple(load_x25519(read_pem(folder / name), passphrase, name) for name in names)
    keys = OperatorKeys(signing, recipient, ring, is_encrypted(signing_pem), past)
    if not keys.is_consistent() or (public.signing, public.recipient) != (ring.signing, ring.recipient):
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
