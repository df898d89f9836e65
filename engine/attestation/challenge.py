"""The challenge that the runner sends, and the nonce object that evidence must carry in answer."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.dsse import open_envelope, seal_envelope
from engine.attestation.measurement import Measurements
from engine.attestation.nonce import NONCE_BYTES
from engine.attestation.reasons import refusal
from engine.errors import RefusedError, WireError
from engine.sealing.manifest import is_digest, is_run_id
from engine.wire import canonical, digest_of, parse

CHALLENGE_TYPE: Final = "application/vnd.glasshouse.challenge+json"
CHALLENGE_VERSION: Final = 1
_NONCE_OBJECT: Final = "glasshouse/nonce-object/1"
_KEY_BYTES: Final = 32


class Challenge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the attester must answer.

    `nonce` and `recipient_public` (the operator's X25519 key) are base64 of 32 bytes; digests are SHA-256 in
    hex; `challenge` is the buyer's text; `runner_head` is the head of the runner's log when the challenge was
    made; `bundle` is the bundle that the runner expects.
    """

    version: int = CHALLENGE_VERSION
    run_id: str
    nonce: str
    plan_digest: str
    manifest_digest: str
    policy_digest: str
    challenge: str | None
    runner_head: str
    recipient_public: str
    bundle: str

    @property
    def nonce_bytes(self) -> bytes:
        """The raw nonce."""
        return base64.b64decode(self.nonce)

    @property
    def recipient_bytes(self) -> bytes:
        """The raw recipient key."""
        return base64.b64decode(self.recipient_public)


def _is_base64_of(text: str, size: int) -> bool:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(raw) == size and base64.b64encode(raw).decode() == text


def _is_valid(challenge: Challenge) -> bool:
    return (
        challenge.version == CHALLENGE_VERSION
        and is_run_id(challenge.run_id)
        and _is_base64_of(challenge.nonce, NONCE_BYTES)
        and _is_base64_of(challenge.recipient_public, _KEY_BYTES)
        and is_digest(challenge.plan_digest)
        and is_digest(challenge.manifest_digest)
        and is_digest(challenge.policy_digest)
        and is_digest(challenge.runner_head)
        and is_digest(challenge.bundle)
        and len(challenge.challenge or "") <= 512
    )


def sign_challenge(challenge: Challenge, run_private: Ed25519PrivateKey) -> dict[str, Any]:
    """The challenge in a DSSE envelope signed by the run's key; raises `RefusedError` (`challenge_invalid`)."""
    if not _is_valid(challenge):
        raise refusal("challenge_invalid")
    return seal_envelope(canonical(msgspec.to_builtins(challenge)), CHALLENGE_TYPE, run_private)


def open_challenge(envelope: object, run_public: bytes, *, run_id: str) -> Challenge:
    """The challenge of this run; raises `RefusedError` (`challenge_invalid`, `run_mismatch`)."""
    try:
        payload = open_envelope(envelope, CHALLENGE_TYPE, [run_public])
        challenge = msgspec.convert(parse(payload), Challenge, strict=True)
    except (RefusedError, WireError, msgspec.ValidationError) as error:
        raise refusal("challenge_invalid") from error
    if not _is_valid(challenge):
        raise refusal("challenge_invalid")
    if challenge.run_id != run_id:
        raise refusal("run_mismatch")
    return challenge


def nonce_object(
    *,
    nonce: bytes,
    cnf: bytes,
    attester_public: bytes,
    measurements: Measurements,
    policy_digest: str,
    plan_digest: str,
    manifest_digest: str,
    challenge: str | None,
    run_id: str,
    pod_id: str,
    ssh_host_key: str,
    gpu_uuid: str | None,
) -> str:
    """The `eat_nonce` claim: SHA-256 in hex over everything that evidence binds, so that no part can be exchanged."""
    return digest_of(
        {
            "type": _NONCE_OBJECT,
            "nonce": nonce.hex(),
            "cnf": cnf.hex(),
            "attester": attester_public.hex(),
            "measurements": msgspec.to_builtins(measurements),
            "policy": policy_digest,
            "plan": plan_digest,
            "manifest": manifest_digest,
            "challenge": challenge,
            "run_id": run_id,
            "pod_id": pod_id,
            "ssh_host_key": ssh_host_key,
            "gpu_uuid": gpu_uuid,
        }
    )
