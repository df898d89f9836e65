"""A folder's signature in the format of OpenSSF model signing (OMS 1.0): one file, `model.sig`.

It is a Sigstore bundle v0.3 with a DSSE envelope around an in-toto statement that lists every file with its SHA-256.
The format's tools verify signatures of EC keys only, and the operator's key is Ed25519. So each folder is signed by a
P-256 key that is made for it and dropped at once; the operator's key signs its certificate. The operator's own
certificate is the same each time, and travels in the bundle: who trusts it has pinned the operator's key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from msgspec import Meta

from engine.attestation.statements import PAYLOAD_TYPE
from engine.errors import RefusedError, WireError
from engine.sealing.manifest import is_digest
from engine.system.imports import without
from engine.wire import parse

with without("boto3", "botocore"):  # 14 MB for cloud signers, which are not used
    from securesystemslib.dsse import Envelope

SIGNATURE: Final = "model.sig"
IGNORED: Final = (".git", ".gitattributes", ".github", ".gitignore")
"""What the format leaves out beside the signature itself: a repository may add these to a folder that was signed."""
MAX_SIGNATURE_BYTES: Final = 4 * 1024 * 1024
MAX_FILES: Final = 4096
_BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PREDICATE: Final = "https://model_signing/signature/v1.0"
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._ -]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._ -]{0,127}){0,3}")

Base64 = Annotated[str, Meta(max_length=MAX_SIGNATURE_BYTES)]


class SignedFolder(msgspec.Struct, frozen=True, kw_only=True):
    """What a valid signature says. `operator` is the raw key that certified the signing key at `issued` (UTC).

    `files` are the folder's files by their paths in it, with SHA-256 in hex.
    """

    operator: bytes
    issued: datetime
    files: dict[str, str]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class _Certificate(_Part, frozen=True, kw_only=True):
    raw_bytes: Base64


class _Chain(_Part, frozen=True, kw_only=True):
    certificates: tuple[_Certificate, _Certificate]


class _Material(_Part, frozen=True, kw_only=True):
    chain: _Chain = msgspec.field(name="x509CertificateChain")
    tlog_entries: tuple[()] = ()


class _Signature(_Part, frozen=True, kw_only=True):
    sig: Base64
    keyid: Annotated[str, Meta(max_length=128)] = ""


class _Envelope(_Part, frozen=True, kw_only=True):
    payload: Base64
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: tuple[_Signature]


class _Bundle(_Part, frozen=True, kw_only=True):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: _Envelope


class _Digest(_Part, frozen=True, kw_only=True):
    sha256: str


class _Subject(_Part, frozen=True, kw_only=True):
    name: str
    digest: _Digest


class _Resource(_Part, frozen=True, kw_only=True):
    name: str
    algorithm: Literal["sha256"]
    digest: str


class _Serialization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool
    ignore_paths: list[str] = []


class _Predicate(_Part, frozen=True, kw_only=True):
    resources: Annotated[list[_Resource], Meta(max_length=MAX_FILES)]
    serialization: _Serialization


class _Statement(_Part, frozen=True, kw_only=True):
    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: tuple[_Subject]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


def read_signature(data: bytes) -> SignedFolder:
    """What a `model.sig` says, its signature and both certificates verified; whom to trust is the caller's decision.

    Raises `RefusedError`: `model_signature_malformed`, `model_signature_invalid`.
    """
    if len(data) > MAX_SIGNATURE_BYTES:
        raise malformed("it is larger than the limit")
    bundle = _convert(data, _Bundle)
    try:
        payload = base64.b64decode(bundle.dsse_envelope.payload, validate=True)
        signature = base64.b64decode(bundle.dsse_envelope.signatures[0].sig, validate=True)
        leaf, root = (
            x509.load_der_x509_certificate(base64.b64decode(one.raw_bytes, validate=True))
            for one in bundle.verification_material.chain.certificates
        )
        operator, key = _keys(leaf, root)
        key.verify(signature, Envelope(payload, PAYLOAD_TYPE, {}).pae(), ec.ECDSA(SHA256()))
        issued = leaf.not_valid_before_utc
    except InvalidSignature as error:
        raise RefusedError(
            "The folder's signature, or a certificate in it, is not valid.",
            "Do not use this folder: ask for it again.",
            code="model_signature_invalid",
        ) from error
    except (binascii.Error, ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise malformed(f"a part of it cannot be read ({type(error).__name__})") from error
    return SignedFolder(operator=operator, issued=issued, files=_files(_convert(payload, _Statement)))


def malformed(why: str) -> RefusedError:
    """The refusal of a signature that is not of the one form that is accepted."""
    return RefusedError(
        f"The folder's {SIGNATURE} is not a model signature of the form that is accepted: {why}.",
        "Ask for the folder again, signed with `glasshouse adapter --sign`.",
        code="model_signature_malformed",
    )


def _convert(data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(parse(data), kind, strict=True)
    except (WireError, ValueError, RecursionError) as error:  # msgspec raises ValueError, also for a lone surrogate
        raise malformed("its JSON has another structure") from error


def _keys(leaf: x509.Certificate, root: x509.Certificate) -> tuple[bytes, ec.EllipticCurvePublicKey]:
    """The operator's raw key and the folder's key; raises `InvalidSignature` and what a malformed certificate does."""
    operator, key = root.public_key(), leaf.public_key()
    if not isinstance(operator, Ed25519PublicKey):
        raise malformed("the operator's key is not an Ed25519 key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise malformed("the signing key is not a P-256 key")
    if (root.issuer, leaf.issuer) != (root.subject, root.subject):
        raise InvalidSignature
    root.verify_directly_issued_by(root)
    leaf.verify_directly_issued_by(root)
    if not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
        raise malformed("the signing key's certificate does not let it sign")
    return operator.public_bytes_raw(), key


def _files(statement: _Statement) -> dict[str, str]:
    """The files that a statement lists, if it is consistent."""
    resources = statement.predicate.resources
    files = {one.name: one.digest for one in resources}
    if len(files) != len(resources) or statement.predicate.serialization.allow_symlinks:
        raise malformed("it lists a file twice, or allows links")
    if not all(map(_NAME.fullmatch, files)) or not all(map(is_digest, files.values())):
        raise malformed("it lists a file with an unusable name or digest")
    together = hashlib.sha256(b"".join(bytes.fromhex(one.digest) for one in resources)).hexdigest()
    if statement.subject[0].digest.sha256 != together:
        raise malformed("its digest is not that of the files that it lists")
    return files
