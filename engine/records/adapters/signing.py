"""Signing a folder with the operator's key by the package `model-signing`; see `signature` for the format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from engine.errors import MissingExtraError
from engine.records.adapters.signature import SIGNATURE
from engine.sealing.operator_keys import OperatorKeys
from engine.system.clock import utc
from engine.system.new_folder import write_file

OPERATOR_CERTIFICATE: Final = "operator.pem"
_NEVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""No end that is known (RFC 5280, 4.1.2.5): rotation and revocation are Glasshouse's own statements."""
_FOLDER_KEY_LIVES: Final = timedelta(minutes=10)


def require_library() -> None:
    """Raise `MissingExtraError` unless the package that signs is installed; loads nothing."""
    from importlib.util import find_spec

    missing = [name for name in ("model_signing", "OpenSSL") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"Signing a folder needs {', '.join(missing)}, not installed here.", "Install glasshouse[signing]."
        )


def operator_certificate(keys: OperatorKeys) -> x509.Certificate:
    """The operator's key as a certificate that it signs itself: the same bytes at every call, until it is rotated."""
    name = _named(f"Glasshouse operator {keys.key_id[:32]}")
    public = keys.signing.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1 + int(keys.key_id[:30], 16))
        .not_valid_before(datetime.fromisoformat(keys.created).replace(microsecond=0))
        .not_valid_after(_NEVER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certifies=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )
    return builder.sign(keys.signing, None)


def sign_folder(folder: Path, keys: OperatorKeys, *, run_id: str) -> None:
    """Add `operator.pem` and `model.sig` to a folder that is complete otherwise.

    Raises `MissingExtraError`, and `OSError`.
    """
    require_library()
    from model_signing import hashing, signing

    root = operator_certificate(keys)
    write_file(folder / OPERATOR_CERTIFICATE, root.public_bytes(Encoding.PEM))
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = folder_certificate(key.public_key(), keys.signing, root, run_id)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with ExitStack() as stack:
        config = signing.Config().use_certificate_signer(
            private_key=stack.enter_context(_in_memory(private)),
            signing_certificate=stack.enter_context(_in_memory(leaf.public_bytes(Encoding.PEM))),
            certificate_chain=[folder / OPERATOR_CERTIFICATE],
        )
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
    config.sign(folder, folder / SIGNATURE)
    (folder / SIGNATURE).chmod(0o600)


def folder_certificate(
    public: ec.EllipticCurvePublicKey, operator: Ed25519PrivateKey, root: x509.Certificate, run_id: str
) -> x509.Certificate:
    """The certificate of one folder's key, by the operator's key. Its first second is when the folder was signed."""
    now = utc().replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_named(f"Adapter of run {run_id}"))
        .issuer_name(root.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now, root.not_valid_before_utc))
        .not_valid_after(max(now, root.not_valid_before_utc) + _FOLDER_KEY_LIVES)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certifies=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(operator.public_key()), critical=False)
    )
    return builder.sign(operator, None)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certifies,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certifies,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@contextmanager
def _in_memory(data: bytes) -> Iterator[Path]:
    """A path to bytes that are on no disk: the package reads its key from a path."""
    descriptor = os.memfd_create("glasshouse", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
