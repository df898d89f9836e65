"""DSSE envelopes by securesystemslib, accepted in their strictest form only.

An envelope is accepted only if it is exactly what our signers write: known fields, canonical base64, the exact payload
type, and one valid signature by each expected public key and by no other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from engine.attestation.reasons import refusal
from engine.errors import WireError
from engine.sealing.pem import key_id
from engine.system.imports import without
from engine.wire import parse

with without("boto3", "botocore"):  # 14 MB for cloud signers, which are not used
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import CryptoSigner, SSlibKey

MAX_PAYLOAD_BASE64: Final = 6 * 1024 * 1024
MAX_SIGNATURES: Final = 8
_FIELDS: Final = {"payload", "payloadType", "signatures"}
_SIGNATURE_FIELDS: Final = {"keyid", "sig"}
_SIGNATURE_BASE64: Final = 88


def _signer(private: Ed25519PrivateKey) -> CryptoSigner:
    public = private.public_key()
    return CryptoSigner(private, SSlibKey.from_crypto(public, keyid=key_id(public.public_bytes_raw())))


def seal_envelope(payload: bytes, payload_type: str, *privates: Ed25519PrivateKey) -> dict[str, Any]:
    """An envelope around `payload`, signed by every key given; the key id is SHA-256 over the raw public key."""
    envelope = Envelope(payload, payload_type, {})
    for private in privates:
        envelope.sign(_signer(private))
    signed: dict[str, Any] = envelope.to_dict()
    return signed


def countersign(envelope: dict[str, Any], private: Ed25519PrivateKey) -> dict[str, Any]:
    """A copy of `envelope` with one more signature; raises `RefusedError` (`envelope_malformed`)."""
    parsed = _parse(envelope)
    parsed.sign(_signer(private))
    signed: dict[str, Any] = parsed.to_dict()
    return signed


def _has_envelope_form(envelope: object) -> bool:
    if not isinstance(envelope, dict) or set(envelope) != _FIELDS:
        return False
    payload, signatures = envelope["payload"], envelope["signatures"]
    if not isinstance(payload, str) or len(payload) > MAX_PAYLOAD_BASE64:
        return False
    if not isinstance(envelope["payloadType"], str) or not isinstance(signatures, list):
        return False
    return 0 < len(signatures) <= MAX_SIGNATURES and all(
        isinstance(entry, dict)
        and set(entry) == _SIGNATURE_FIELDS
        and all(isinstance(value, str) for value in entry.values())
        and len(entry["keyid"]) <= 64
        and len(entry["sig"]) == _SIGNATURE_BASE64
        for entry in signatures
    )


def _parse(envelope: object) -> Envelope:
    if not _has_envelope_form(envelope):
        raise refusal("envelope_malformed")
    try:
        parsed = Envelope.from_dict(copy.deepcopy(envelope))
        is_canonical = parsed.to_dict() == envelope
    except (ValueError, KeyError, TypeError) as error:  # bad base64, a key id twice
        raise refusal("envelope_malformed") from error
    if not is_canonical:
        raise refusal("envelope_malformed")
    return parsed


def open_envelope(envelope: object, payload_type: str, publics: Sequence[bytes]) -> bytes:
    """The payload, if exactly the keys in `publics` (raw, distinct) have signed it.

    Raises `RefusedError`: `envelope_malformed`, `envelope_payload_type`, `envelope_keys_not_distinct`,
    `envelope_signer_unknown`, `envelope_signature_invalid`.
    """
    parsed = _parse(envelope)
    if parsed.payload_type != payload_type:
        raise refusal("envelope_payload_type")
    if len(set(publics)) != len(publics) or not publics:
        raise refusal("envelope_keys_not_distinct")
    keys = [_public_key(raw) for raw in publics]
    if set(parsed.signatures) != {key.keyid for key in keys}:
        signs_twice = _signs_under_other_id(parsed, publics)
        raise refusal("envelope_keys_not_distinct" if signs_twice else "envelope_signer_unknown")
    try:
        parsed.verify(keys, threshold=len(keys))
    except VerificationError as error:
        raise refusal("envelope_signature_invalid") from error
    payload: bytes = parsed.payload
    return payload


def peek_payload(envelope: object) -> dict[str, Any]:
    """The JSON object in an envelope, its signatures unchecked: only to find out which keys must verify it.

    Raises `RefusedError` (`envelope_malformed`, `statement_malformed`).
    """
    try:
        payload = parse(_parse(envelope).payload)
    except WireError as error:
        raise refusal("statement_malformed") from error
    if not isinstance(payload, dict):
        raise refusal("statement_malformed")
    return payload


def _signs_under_other_id(envelope: Envelope, publics: Sequence[bytes]) -> bool:
    """True when one of the keys made a signature that is listed under another key's id."""
    for raw in publics:
        public = Ed25519PublicKey.from_public_bytes(bytes(raw))
        for keyid, signature in envelope.signatures.items():
            if keyid != key_id(raw) and _verifies(public, bytes.fromhex(signature.signature), envelope.pae()):
                return True
    return False


def _verifies(public: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        public.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _public_key(raw: bytes) -> SSlibKey:
    try:
        return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes(raw)), keyid=key_id(raw))
    except ValueError as error:
        raise refusal("envelope_signer_unknown") from error
