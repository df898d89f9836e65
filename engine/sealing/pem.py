"""Private keys as PKCS8 PEM, and the ids of public keys."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from engine.errors import SealingError
from engine.system.files import read_named

MAX_PASSPHRASE_BYTES: Final = 1023
_MAX_PEM_BYTES: Final = 16 * 1024
_ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"

PrivateKey = Ed25519PrivateKey | X25519PrivateKey


def key_id(public: bytes) -> str:
    """SHA-256 in hex over a raw public key."""
    return hashlib.sha256(public).hexdigest()


def fingerprint(public: bytes) -> str:
    """`SHA256:` and the key id, as shown to users."""
    return f"SHA256:{key_id(public)}"


def check_passphrase(passphrase: str) -> bytes:
    """The passphrase in UTF-8; raises `SealingError` (`passphrase_invalid`) if it is empty or too long."""
    try:
        encoded = passphrase.encode()
    except UnicodeEncodeError as error:
        raise SealingError("The passphrase is not valid text.", code="passphrase_invalid") from error
    if not 0 < len(encoded) <= MAX_PASSPHRASE_BYTES:
        raise SealingError(
            f"A passphrase must have 1 to {MAX_PASSPHRASE_BYTES} bytes.",
            "Choose another passphrase.",
            code="passphrase_invalid",
        )
    return encoded


def private_pem(key: PrivateKey, passphrase: str | None) -> bytes:
    """PKCS8 PEM of a private key, encrypted if there is a passphrase."""
    protection: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        protection = BestAvailableEncryption(check_passphrase(passphrase))
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def is_encrypted(pem: bytes) -> bool:
    """True if a PEM holds an encrypted private key."""
    return _ENCRYPTED in pem


def read_pem(path: Path, *, limit: int = _MAX_PEM_BYTES) -> bytes:
    """The bytes of a key file, `limit` at most; raises `SealingError` (`key_missing`, `key_permissions`,
    `key_invalid`).
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise SealingError(f"{path.name} is not a key file.", "Restore the keys from a backup.", code="key_invalid")
        if status.st_mode & 0o077:
            raise SealingError(f"Other users can read {path.name}.", f"Run: chmod 600 {path}", code="key_permissions")
        return read_named(path, limit)
    except OSError as error:
        raise SealingError(
            f"The key file {path.name} cannot be read: {error.strerror}.",
            "Restore the keys from a backup.",
            code="key_missing",
        ) from error


def _load(pem: bytes, passphrase: str | None, name: str) -> object:
    encrypted = is_encrypted(pem)
    if encrypted and passphrase is None:
        raise SealingError(
            f"{name} is encrypted with a passphrase.", "Give the passphrase.", code="key_passphrase_needed"
        )
    try:
        return load_pem_private_key(pem, check_passphrase(passphrase) if encrypted and passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise SealingError(
                f"The passphrase does not open {name}.", "Try again.", code="key_passphrase_wrong"
            ) from error
        raise _invalid(name) from error


def _invalid(name: str) -> SealingError:
    return SealingError(
        f"{name} does not hold a private key of the expected kind.",
        "Restore the keys from a backup.",
        code="key_invalid",
    )


def load_ed25519(pem: bytes, passphrase: str | None, name: str) -> Ed25519PrivateKey:
    """A signing key from its PEM; a passphrase is ignored if the PEM is not encrypted.

    Raises `SealingError` (`key_passphrase_needed`, `key_passphrase_wrong`, `key_invalid`).
    """
    key = _load(pem, passphrase, name)
    if not isinstance(key, Ed25519PrivateKey):
        raise _invalid(name)
    return key


def load_x25519(pem: bytes, passphrase: str | None, name: str) -> X25519PrivateKey:
    """A recipient key from its PEM; raises as `load_ed25519`."""
    key = _load(pem, passphrase, name)
    if not isinstance(key, X25519PrivateKey):
        raise _invalid(name)
    return key
