"""One encrypted file that holds both operator keys: scrypt (RFC 7914) over a passphrase, then
Cobblestone-256.

The file is canonical JSON; everything beside `sealed` is the stream's context, so that no field can be
changed.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from engine.errors import RefusedError, SealingError, WireError
from engine.sealing.cobblestone import decrypt_into, encrypt_stream, sealed_size
from engine.sealing.files import sync_folder
from engine.sealing.keyring import SIGNING_FILE, OperatorKeys, install, locked, read_public
from engine.sealing.memory import KEY_BYTES, wipe
from engine.sealing.pem import check_passphrase
from engine.wire import canonical, parse

BACKUP_FORMAT: Final = "glasshouse/key-backup"
_SCRYPT: Final = {"n": 2**16, "r": 8, "p": 1}
_SALT_BYTES: Final = 16
_SECRET_BYTES: Final = 2 * KEY_BYTES
_MAX_BACKUP_BYTES: Final = 16 * 1024


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
    sealed: str

    def context(self) -> bytes:
        fields: dict[str, Any] = msgspec.to_builtins(self)
        del fields["sealed"]
        return canonical(fields)


def _derive(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=KEY_BYTES, **_SCRYPT).derive(check_passphrase(passphrase))


def _invalid() -> SealingError:
    return SealingError("This is not a key backup.", "Choose the file that `key backup` wrote.", code="backup_invalid")


def _seal(keys: OperatorKeys, passphrase: str) -> bytes:
    salt = os.getrandom(_SALT_BYTES)
    draft = _Backup(
        created=keys.created,
        signing=keys.signing_public.hex(),
        recipient=keys.recipient_public.hex(),
        kdf=_Kdf(salt=salt.hex()),
        sealed="",
    )
    secret = bytearray(keys.signing.private_bytes_raw() + keys.recipient.private_bytes_raw())
    key = _derive(passphrase, salt)
    out = io.BytesIO()
    try:
        encrypt_stream(memoryview(key), draft.context(), [memoryview(secret)], out.write)
    finally:
        wipe(key)
        wipe(secret)
    sealed = base64.b64encode(out.getvalue()).decode()
    return canonical(msgspec.to_builtins(msgspec.structs.replace(draft, sealed=sealed))) + b"\n"


def _parse(data: bytes) -> tuple[_Backup, bytes, bytes]:
    try:
        backup = msgspec.convert(parse(data), _Backup, strict=True)
        sealed = base64.b64decode(backup.sealed, validate=True)
        salt = bytes.fromhex(backup.kdf.salt)
    except (WireError, msgspec.ValidationError, binascii.Error, ValueError) as error:
        raise _invalid() from error
    known = backup.format == BACKUP_FORMAT and backup.version == 1 and backup.kdf == _Kdf(salt=backup.kdf.salt)
    if not known or len(salt) != _SALT_BYTES or len(sealed) != sealed_size(_SECRET_BYTES):
        raise _invalid()
    return backup, sealed, salt


def _open(data: bytes, passphrase: str) -> OperatorKeys:
    backup, sealed, salt = _parse(data)
    secret = bytearray(_SECRET_BYTES)
    key = _derive(passphrase, salt)
    try:
        decrypt_into(key, backup.context(), io.BytesIO(sealed), memoryview(secret), what="The backup", kind="backup")
        keys = OperatorKeys(
            signing=Ed25519PrivateKey.from_private_bytes(secret[:KEY_BYTES]),
            recipient=X25519PrivateKey.from_private_bytes(secret[KEY_BYTES:]),
            created=backup.created,
            encrypted=False,
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
    if (keys.signing_public.hex(), keys.recipient_public.hex()) != (backup.signing, backup.recipient):
        raise _invalid()
    return keys


def backup(folder: Path, target_file: Path, passphrase: str, *, key_passphrase: str | None = None) -> None:
    """Write both keys of `folder` to a new file of mode 0600, encrypted under `passphrase`.

    `key_passphrase` opens the keys where they are under another passphrase. Raises `SealingError`:
    `backup_exists`, `backup_unwritable`, `passphrase_invalid`, and as `OperatorKeys.load` does.
    """
    check_passphrase(passphrase)
    keys = OperatorKeys.load(folder, passphrase if key_passphrase is None else key_passphrase)
    data = _seal(keys, passphrase)
    try:
        descriptor = os.open(target_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise SealingError(
            "The backup file exists already.",
            "Choose another name; a backup replaces nothing.",
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


def _holds(folder: Path, keys: OperatorKeys) -> bool:
    public = read_public(folder)
    return (public.signing, public.recipient) == (keys.signing_public.hex(), keys.recipient_public.hex())


def restore(
    file: Path, folder: Path, passphrase: str, *, key_passphrase: str | None = None, force: bool = False
) -> OperatorKeys:
    """Put the keys of a backup into `folder`, under `key_passphrase` (None leaves them unencrypted).

    Raises `SealingError`: `backup_invalid`, `key_passphrase_wrong`, and `key_exists` when other keys are
    there and `force` is not set; nothing changes then.
    """
    try:
        with file.open("rb") as source:
            data = source.read(_MAX_BACKUP_BYTES + 1)
    except OSError as error:
        raise SealingError(
            f"The backup cannot be read: {error.strerror}.", "Check its path.", code="backup_invalid"
        ) from error
    keys = _open(data, passphrase)
    with locked(folder):
        if (folder / SIGNING_FILE).exists() and not force and not _holds(folder, keys):
            raise SealingError(
                "Other operator keys are here already; adapters sealed to them could never be opened again.",
                "Back those up first, then use --force.",
                code="key_exists",
            )
        install(folder, keys, key_passphrase)
    return OperatorKeys.load(folder, key_passphrase)
