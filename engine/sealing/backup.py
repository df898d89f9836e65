"""One encrypted file that holds the operator's keys: scrypt (RFC 7914) over a passphrase, then Cobblestone-256.

The file is canonical JSON; everything but `sealed` is the stream's context, so that no field can be changed. Version 1
has one signing and one recipient key; version 2 also has their history and the former recipient keys.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from engine.errors import RefusedError, SealingError, WireError
from engine.sealing.cobblestone import decrypt_into, encrypt_stream, sealed_size
from engine.sealing.key_generations import PublicKeys, Ring, parse_ring, read_ring
from engine.sealing.memory import KEY_BYTES, wipe
from engine.sealing.operator_keys import SIGNING_FILE, OperatorKeys, install, locked
from engine.sealing.pem import check_passphrase
from engine.system.files import read_named, sync_folder
from engine.wire import canonical, parse, utc_now

BACKUP_FORMAT: Final = "glasshouse/key-backup"
_SCRYPT: Final = {"n": 2**16, "r": 8, "p": 1}
_SALT_BYTES: Final = 16
_MAX_BACKUP_BYTES: Final = 2 * 1024 * 1024


class _Kdf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str = "scrypt"
    n: int = _SCRYPT["n"]
    r: int = _SCRYPT["r"]
    p: int = _SCRYPT["p"]
    salt: str


class _Backup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: str = BACKUP_FORMAT
    version: int = 1
    created: str
    signing: str
    recipient: str
    kdf: _Kdf
    ring: Ring | None = None
    sealed: str

    def fields(self) -> dict[str, Any]:
        """The file's fields; version 1 has no ring."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        if self.ring is None:
            del built["ring"]
        return built

    def context(self) -> bytes:
        """The context that the sealed part is bound to."""
        built = self.fields()
        del built["sealed"]
        return canonical(built)

    @property
    def history(self) -> Ring:
        """The ring; in version 1 it follows from the two keys."""
        return self.ring or Ring.fresh(PublicKeys(created=self.created, signing=self.signing, recipient=self.recipient))

    @property
    def secret_bytes(self) -> int:
        """The size of the decrypted keys in bytes."""
        return KEY_BYTES * (2 + len(self.history.past_recipients))


def _derive(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=KEY_BYTES, **_SCRYPT).derive(check_passphrase(passphrase))


def _invalid() -> SealingError:
    return SealingError("This is not a key backup.", "Choose the file that `key backup` wrote.", code="backup_invalid")


def _seal(keys: OperatorKeys, passphrase: str) -> bytes:
    salt = os.getrandom(_SALT_BYTES)
    ring = keys.ring if keys.ring.has_history else None
    draft = _Backup(
        version=1 if ring is None else 2,
        created=keys.created,
        signing=keys.signing_public.hex(),
        recipient=keys.recipient_public.hex(),
        kdf=_Kdf(salt=salt.hex()),
        ring=ring,
        sealed="",
    )
    secret = bytearray(keys.signing.private_bytes_raw())
    for recipient in (keys.recipient, *keys.past_recipients):
        secret += recipient.private_bytes_raw()
    key = _derive(passphrase, salt)
    out = io.BytesIO()
    try:
        encrypt_stream(memoryview(key), draft.context(), [memoryview(secret)], out.write)
    finally:
        wipe(key)
        wipe(secret)
    sealed = base64.b64encode(out.getvalue()).decode()
    return canonical(msgspec.structs.replace(draft, sealed=sealed).fields()) + b"\n"


def _parse(data: bytes) -> tuple[_Backup, bytes, bytes]:
    try:
        backup = msgspec.convert(parse(data), _Backup, strict=True)
        sealed = base64.b64decode(backup.sealed, validate=True)
        salt = bytes.fromhex(backup.kdf.salt)
        parse_ring(canonical(msgspec.to_builtins(backup.history)))
    except (SealingError, WireError, msgspec.ValidationError, binascii.Error, ValueError) as error:
        raise _invalid() from error
    version = 1 if backup.ring is None else 2
    is_known = backup.format == BACKUP_FORMAT and backup.version == version and backup.kdf == _Kdf(salt=backup.kdf.salt)
    if not is_known or len(salt) != _SALT_BYTES or len(sealed) != sealed_size(backup.secret_bytes):
        raise _invalid()
    return backup, sealed, salt


def _open(data: bytes, passphrase: str) -> OperatorKeys:
    backup, sealed, salt = _parse(data)
    secret = bytearray(backup.secret_bytes)
    key = _derive(passphrase, salt)
    try:
        decrypt_into(key, backup.context(), io.BytesIO(sealed), memoryview(secret), what="The backup", kind="backup")
        privates = [memoryview(secret)[start : start + KEY_BYTES] for start in range(0, len(secret), KEY_BYTES)]
        current, *past = map(X25519PrivateKey.from_private_bytes, privates[1:])
        keys = OperatorKeys(
            signing=Ed25519PrivateKey.from_private_bytes(privates[0]),
            recipient=current,
            ring=backup.history,
            encrypted=False,
            past_recipients=tuple(past),
        )
    except RefusedError as error:
        raise SealingError(
            "The passphrase does not open this backup, or the file was changed.",
            "Try again, or use another copy of the backup.",
            code="key_passphrase_wrong",
        ) from error
    finally:
        wipe(key)
        wipe(secret)
    if not keys.is_consistent() or (backup.signing, backup.recipient) != (keys.ring.signing, keys.ring.recipient):
        raise _invalid()
    return keys


def backup(folder: Path, target_file: Path, passphrase: str, *, key_passphrase: str | None = None) -> None:
    """Write the keys of `folder`, with their history, to a new file of mode 0600, encrypted under `passphrase`.

    `key_passphrase` opens the keys if they have another passphrase. Raises `SealingError`:
    `backup_exists`, `backup_unwritable`, `passphrase_invalid`, and as `OperatorKeys.load` does.
    """
    check_passphrase(passphrase)
    keys = OperatorKeys.load(folder, passphrase if key_passphrase is None else key_passphrase)
    data = _seal(keys, passphrase)
    try:
        descriptor = os.open(target_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise SealingError(
            "The backup file already exists, and a backup never replaces a file.",
            "Choose another name.",
            code="backup_exists",
        ) from error
    except OSError as error:
        raise _unwritable(error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(target_file.parent)
    except OSError as error:
        target_file.unlink(missing_ok=True)
        raise _unwritable(error) from error


def _unwritable(error: OSError) -> SealingError:
    return SealingError(
        f"The backup cannot be written: {error.strerror}.",
        "Choose another place for it.",
        code="backup_unwritable",
    )


def _existing_ring(folder: Path, *, force: bool) -> Ring | None:
    """The ring that the folder already has; with `force` a damaged one is ignored."""
    try:
        return read_ring(folder)
    except SealingError:
        if force:
            return None
        raise


def _has_same_keys(existing: Ring | None, ring: Ring) -> bool:
    return existing is not None and (existing.signing, existing.recipient) == (ring.signing, ring.recipient)


def restore(
    file: Path, folder: Path, passphrase: str, *, key_passphrase: str | None = None, force: bool = False
) -> OperatorKeys:
    """Put the keys of a backup into `folder`, under `key_passphrase` (None leaves them unencrypted).

    If the folder already has keys of the same operator, what is known about former keys is kept: an older backup undoes
    no revocation. Raises `SealingError`: `backup_invalid`, `key_passphrase_wrong`, and `key_exists` if the folder has
    other keys and `force` is not set; nothing is changed then.
    """
    try:
        data = read_named(file, _MAX_BACKUP_BYTES)
    except OSError as error:
        raise SealingError(
            f"The backup cannot be read: {error.strerror}.", "Check its path.", code="backup_invalid"
        ) from error
    keys = _open(data, passphrase)
    with locked(folder):
        existing = _existing_ring(folder, force=force)
        if (folder / SIGNING_FILE).exists() and not force and not _has_same_keys(existing, keys.ring):
            raise SealingError(
                "This home already has other operator keys; adapters sealed to them could never be opened again.",
                "Back up those keys first, then use --force.",
                code="key_exists",
            )
        if existing is not None:
            keys = replace(keys, ring=keys.ring.with_history_of(existing, at=utc_now()))
        install(folder, keys, key_passphrase)
    return OperatorKeys.load(folder, key_passphrase)
