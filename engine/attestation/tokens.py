"""Signed tokens: JWTs (RFC 7519) in JWS compact form, signed with Ed25519 (RFC 9864), as evidence and results are.

A reader accepts only the exact header and canonical encodings; what is wrong is refused under the caller's codes.
"""

from __future__ import annotations

import base64
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc import jws
from joserfc.errors import BadSignatureError, JoseError
from joserfc.jwk import OKPKey

from engine.attestation.reasons import refusal
from engine.errors import WireError
from engine.sealing.pem import key_id
from engine.wire import parse

ALGORITHM: Final = "Ed25519"
TOKEN_TYPE: Final = "eat+jwt"  # noqa: S105  # the media type of an EAT as a JWT (RFC 9782)
MAX_TOKEN_BYTES: Final = 64 * 1024


class TokenCodes(msgspec.Struct, frozen=True, kw_only=True):
    """The reason codes for a token that is no token, has another algorithm, signer or signature."""

    malformed: str
    algorithm: str
    signer: str
    signature: str


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    alg: str
    typ: str
    kid: str


def encode(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The inverse of `encode`, for its one canonical spelling; raises `ValueError`."""
    raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if encode(raw) != text:
        raise ValueError("not canonical base64url")
    return raw


def unverified_claims(token: str) -> bytes:
    """The payload of a token, its signature unchecked; raises `ValueError`."""
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("not a token")
    return decode(parts[1])


def sign_token(payload: bytes, private: Ed25519PrivateKey) -> str:
    """The token of a payload; the key id in its header is SHA-256 over the raw public key."""
    header = {"alg": ALGORITHM, "typ": TOKEN_TYPE, "kid": key_id(private.public_key().public_bytes_raw())}
    return jws.serialize_compact(header, payload, OKPKey.import_key(private), algorithms=[ALGORITHM])


def _header_of(token: str, codes: TokenCodes) -> _Header:
    parts = token.split(".")
    if len(parts) != 3:
        raise refusal(codes.malformed)
    try:
        raw = parse(decode(parts[0]))
    except (WireError, ValueError) as error:
        raise refusal(codes.malformed) from error
    if not isinstance(raw, dict):
        raise refusal(codes.malformed)
    if raw.get("alg") != ALGORITHM:
        raise refusal(codes.algorithm)
    try:
        header = msgspec.convert(raw, _Header, strict=True)
    except msgspec.ValidationError as error:
        raise refusal(codes.malformed) from error
    if header.typ != TOKEN_TYPE:
        raise refusal(codes.malformed)
    return header


def open_token(token: str, public: bytes, codes: TokenCodes) -> bytes:
    """The payload of a token that `public` (32 raw bytes) signed; raises `RefusedError` with one of `codes`."""
    header = _header_of(token, codes)
    if header.kid != key_id(public):
        raise refusal(codes.signer)
    try:
        key = OKPKey.import_key(Ed25519PublicKey.from_public_bytes(public))
        verified = jws.deserialize_compact(token, key, algorithms=[ALGORITHM])
    except BadSignatureError as error:
        raise refusal(codes.signature) from error
    except (JoseError, ValueError, TypeError) as error:
        raise refusal(codes.malformed) from error
    return bytes(verified.payload or b"")
