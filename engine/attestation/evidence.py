"""Evidence: an Entity Attestation Token (RFC 9711) as a JWT, signed with Ed25519 (RFC 9864) by the attester.

The token's claims are those of the RFC where it defines one, and our own. A reader accepts only the exact header, the
exact claims and canonical encodings; anything else is a typed refusal.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.claims import Claims, Heads, Observed, Scalar, bound_nonce, make_claims
from engine.attestation.measurement import Measurements
from engine.attestation.nonce import NONCE_BYTES
from engine.attestation.public_text import is_public_text
from engine.attestation.reasons import refusal
from engine.attestation.tokens import (
    MAX_TOKEN_BYTES,
    TokenCodes,
    decode,
    encode,
    open_token,
    sign_token,
    unverified_claims,
)
from engine.errors import WireError
from engine.sealing.manifest import is_digest, is_run_id
from engine.wire import canonical, parse

__all__ = [
    "Claims",
    "Heads",
    "Observed",
    "Scalar",
    "bound_nonce",
    "make_claims",
    "observed_controls",
    "parse_evidence",
    "sign_evidence",
]

MAX_EVIDENCE_BYTES: Final = MAX_TOKEN_BYTES
MAX_TEXT: Final = 512
MAX_ENTRIES: Final = 64
DEBUG_STATES: Final = (
    "enabled",
    "disabled",
    "disabled-since-boot",
    "disabled-permanently",
    "disabled-fully-and-permanently",
)

_JSON_CONTENT: Final = 50  # CoAP content format of application/json
_KEY_BYTES: Final = 32
_MAX_TIME: Final = 2**48
_CODES: Final = TokenCodes(
    malformed="evidence_malformed",
    algorithm="evidence_alg",
    signer="attester_key_unknown",
    signature="signature_invalid",
)


class _Jwk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kty: str = "OKP"
    crv: str = "X25519"
    x: str


class _Confirmation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    jwk: _Jwk


class _Token(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    eat_profile: str
    eat_nonce: str
    iat: int
    exp: int
    jti: str
    hwmodel: str
    swname: str
    swversion: tuple[str]
    dbgstat: str
    measurements: tuple[tuple[int, str]]
    submods: dict[str, dict[str, Scalar]]
    cnf: _Confirmation
    tier: str
    run_id: str
    nonce: str
    attester_key: str
    plan_digest: str
    manifest_digest: str
    policy_digest: str
    challenge: str | None
    pod_id: str
    ssh_host_key: str
    gpu_uuid: str | None
    enforcement: dict[str, Observed]
    heads: Heads
    not_a_hardware_tee_claim: bool


def _to_token(claims: Claims) -> dict[str, Any]:
    fields = {name: getattr(claims, name) for name in _Token.__struct_fields__}
    fields |= {
        "hwmodel": encode(claims.hwmodel.encode()),
        "swversion": (claims.swversion,),
        "measurements": ((_JSON_CONTENT, canonical(msgspec.to_builtins(claims.measurements)).decode()),),
        "cnf": _Confirmation(jwk=_Jwk(x=encode(claims.cnf))),
        "nonce": encode(claims.nonce),
        "attester_key": encode(claims.attester_key),
    }
    built: dict[str, Any] = msgspec.to_builtins(_Token(**fields))
    return built


def _from_token(token: _Token) -> Claims:
    """Raises `ValueError`, `msgspec.ValidationError` or `WireError`."""
    ((content, measured),) = token.measurements
    measurements = msgspec.convert(parse(measured), Measurements, strict=True)
    jwk = token.cnf.jwk
    if content != _JSON_CONTENT or (jwk.kty, jwk.crv) != ("OKP", "X25519"):
        raise ValueError("unknown kind of measurement or key")
    fields = {name: getattr(token, name) for name in _Token.__struct_fields__}
    fields |= {
        "hwmodel": decode(token.hwmodel).decode(),
        "swversion": token.swversion[0],
        "measurements": measurements,
        "cnf": decode(jwk.x),
        "nonce": decode(token.nonce),
        "attester_key": decode(token.attester_key),
    }
    return Claims(**fields)


def _is_valid(claims: Claims) -> bool:
    digests = (
        claims.eat_nonce,
        claims.plan_digest,
        claims.manifest_digest,
        claims.policy_digest,
        claims.ssh_host_key,
        claims.heads.runner,
        claims.heads.pod,
        *msgspec.structs.astuple(claims.measurements),
    )
    texts = (
        *(claims.eat_profile, claims.jti, claims.hwmodel, claims.swname, claims.swversion, claims.tier),
        *(claims.pod_id, claims.gpu_uuid or ""),
        *(text for name, control in claims.enforcement.items() for text in (name, control.value, control.detail)),
        *(text for name, submod in claims.submods.items() for text in (name, *submod)),
        *(value for submod in claims.submods.values() for value in submod.values() if isinstance(value, str)),
    )
    return (
        all(map(is_digest, digests))
        and all(map(is_public_text, texts))  # evidence is published
        and len(claims.challenge or "") <= MAX_TEXT
        and is_run_id(claims.run_id)
        and claims.dbgstat in DEBUG_STATES
        and len(claims.cnf) == len(claims.attester_key) == _KEY_BYTES
        and len(claims.nonce) == NONCE_BYTES
        and 0 < claims.iat < claims.exp < _MAX_TIME
        and len(claims.enforcement) <= MAX_ENTRIES
        and len(claims.submods) <= MAX_ENTRIES
    )


def sign_evidence(claims: Claims, attester_private: Ed25519PrivateKey) -> str:
    """The signed token.

    Raises `RefusedError` (`evidence_claims`, `evidence_too_large`, `attester_key_unknown`).
    """
    public = attester_private.public_key().public_bytes_raw()
    if claims.attester_key != public:
        raise refusal("attester_key_unknown")
    if not _is_valid(claims):
        raise refusal("evidence_claims")
    try:
        payload = canonical(_to_token(claims))
    except WireError as error:
        raise refusal("evidence_claims") from error
    token = sign_token(payload, attester_private)
    if len(token) > MAX_EVIDENCE_BYTES:
        raise refusal("evidence_too_large")
    return token


def observed_controls(token: str) -> dict[str, str]:
    """The value of each control in a token, its signature unchecked; empty if the token cannot be read."""
    try:
        raw = parse(unverified_claims(token))
        enforcement = msgspec.convert(raw["enforcement"], dict[str, Observed], strict=True)
    except (LookupError, TypeError, ValueError, WireError, msgspec.ValidationError):
        return {}
    return {name: control.value for name, control in sorted(enforcement.items())}


def parse_evidence(token: str, attester_public: bytes) -> Claims:
    """The claims of a token that `attester_public` (32 raw bytes) signed.

    Raises `RefusedError`: `evidence_too_large`, `evidence_malformed`, `evidence_alg`, `attester_key_unknown`,
    `signature_invalid`, `evidence_claims`. The verifier compares the claims with the expected ones.
    """
    if len(token) > MAX_EVIDENCE_BYTES:
        raise refusal("evidence_too_large")
    payload = open_token(token, attester_public, _CODES)
    try:
        raw = parse(payload)
        is_canonical = canonical(raw) == payload
        claims = _from_token(msgspec.convert(raw, _Token, strict=True))
    except (WireError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise refusal("evidence_claims") from error
    if not is_canonical or not _is_valid(claims):
        raise refusal("evidence_claims")
    if claims.attester_key != attester_public:
        raise refusal("attester_key_unknown")
    return claims
