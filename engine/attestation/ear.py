"""The attestation result as an EAT Attestation Result (EAR, draft-ietf-rats-ear-04): a JWT that the Verifier signs.

The Verifier is the run's own runner, so the run's key signs; the operator's delegation introduces that key. The token
has one submodule, `SUBMODULE`. What EAR has no claim for is in one extension claim, `EXTENSION`, a map as the draft
requires, named by a URN so that it collides with nobody's. A reader that knows EAR ignores it.

This module's reader accepts its own profile of EAR only, in its canonical form: whatever it does not know is refused.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.policy import SOFTWARE
from engine.attestation.reasons import refusal
from engine.attestation.tokens import MAX_TOKEN_BYTES, TokenCodes, open_token, sign_token, unverified_claims
from engine.attestation.verifier import TRUST_VALUES, Appraisal, AttestationResult, Status
from engine.errors import RefusedError, WireError
from engine.sealing.manifest import is_digest, is_run_id
from engine.wire import canonical, parse, sha256_hex

EAR_PROFILE: Final = "tag:ietf.org,2026:rats/ear#04"
APPRAISAL_PROFILE: Final = "urn:glasshouse:ear:1"
EXTENSION: Final = "urn:glasshouse:ear:1:appraisal"
SUBMODULE: Final = "glasshouse-worker"
DEVELOPER: Final = "glasshouse"
AR4SI: Final = frozenset(
    {
        "instance-identity",
        "configuration",
        "executables",
        "file-system",
        "hardware",
        "runtime-opaque",
        "storage-opaque",
        "sourced-data",
    }
)
"""The entries of a trustworthiness vector (draft-ietf-rats-ar4si)."""
_POLICY: Final = "urn:glasshouse:policy:sha256:"
_MAX_TIME: Final = 2**48
_CODES: Final = TokenCodes(
    malformed="result_malformed",
    algorithm="result_malformed",
    signer="result_signature_invalid",
    signature="result_signature_invalid",
)


class _VerifierId(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    developer: str
    build: str


class _Extension(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tier` of the evidence; digests are SHA-256 in hex; `cnf` the attested key in hex, null unless accepted."""

    run_id: str
    tier: str
    policy: str
    evidence_sha256: str
    manifest_sha256: str
    checks: tuple[Appraisal, ...]
    cnf: str | None
    not_a_hardware_tee_claim: bool


class _Appraisal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    eat_profile: str
    ear_status: Status
    ear_trustworthiness_vector: dict[str, int]
    ear_appraisal_policy_ids: tuple[str]
    eat_nonce: str | None = None
    extension: _Extension = msgspec.field(name=EXTENSION)


class _Ear(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    eat_profile: str
    iat: int
    jti: str
    ear_status: Status
    ear_verifier_id: _VerifierId
    submods: dict[str, _Appraisal]


def claims_of(result: AttestationResult) -> dict[str, Any]:
    """The EAR claims of a result, as JSON has them."""
    claims: dict[str, Any] = msgspec.to_builtins(_claims_of(result))
    return claims


def _claims_of(result: AttestationResult) -> _Ear:
    appraisal = _Appraisal(
        eat_profile=APPRAISAL_PROFILE,
        ear_status=result.status,
        ear_trustworthiness_vector=result.trust_vector,
        ear_appraisal_policy_ids=(_POLICY + result.policy_sha256,),
        eat_nonce=result.nonce,
        extension=_Extension(
            run_id=result.run_id,
            tier=result.tier,
            policy=result.policy_id,
            evidence_sha256=result.evidence_sha256,
            manifest_sha256=result.manifest_sha256,
            checks=result.checks,
            cnf=result.cnf,
            not_a_hardware_tee_claim=result.tier == SOFTWARE,
        ),
    )
    return _Ear(
        eat_profile=EAR_PROFILE,
        iat=result.issued,
        jti=result.result_id,
        ear_status=result.status,
        ear_verifier_id=_VerifierId(developer=DEVELOPER, build=result.verifier_build),
        submods={SUBMODULE: appraisal},
    )


def sign_result(result: AttestationResult, verifier_private: Ed25519PrivateKey) -> str:
    """The result as a signed EAR token; the same result and key give the same token (RFC 8032).

    Raises `RefusedError` (`result_overclaimed`) for one that says more than its tier allows.
    """
    _refuse_overclaim(result)
    return sign_token(canonical(claims_of(result)), verifier_private)


def result_digest(token: str) -> str:
    """SHA-256 in hex over an EAR token, as logs and receipts name it."""
    return sha256_hex(token.encode("utf-8", "surrogatepass"))


def _from_claims(ear: _Ear) -> AttestationResult:
    """Raises `KeyError` and `ValueError` for other claims than this profile's."""
    appraisal = ear.submods[SUBMODULE]
    ours = appraisal.extension
    result = AttestationResult(
        result_id=ear.jti,
        run_id=ours.run_id,
        issued=ear.iat,
        status=ear.ear_status,
        tier=ours.tier,
        verifier_build=ear.ear_verifier_id.build,
        policy_id=ours.policy,
        policy_sha256=appraisal.ear_appraisal_policy_ids[0].removeprefix(_POLICY),
        evidence_sha256=ours.evidence_sha256,
        manifest_sha256=ours.manifest_sha256,
        nonce=appraisal.eat_nonce,
        trust_vector=appraisal.ear_trustworthiness_vector,
        checks=ours.checks,
        cnf=ours.cnf,
    )
    if not _is_valid(result):
        raise ValueError("not a result of this profile")
    return result


def _is_valid(result: AttestationResult) -> bool:
    return (
        is_run_id(result.run_id)
        and all(map(is_digest, (result.policy_sha256, result.evidence_sha256, result.manifest_sha256)))
        and (result.cnf is None or is_digest(result.cnf))
        and 0 < result.issued < _MAX_TIME
        and set(result.trust_vector) <= AR4SI
        and set(result.trust_vector.values()) <= set(TRUST_VALUES.values())
    )


def _refuse_overclaim(result: AttestationResult) -> None:
    """EAR: no status is better than the worst entry of its vector. Ours: software is never better than a warning."""
    worst = max(result.trust_vector.values(), default=0)
    is_better = result.status != "none" and TRUST_VALUES[result.status] < worst
    affirms = result.status == "affirming" or TRUST_VALUES["affirming"] in result.trust_vector.values()
    if is_better or (affirms and result.tier == SOFTWARE):
        raise refusal("result_overclaimed")


def _read(payload: bytes) -> AttestationResult:
    try:
        result = _from_claims(msgspec.convert(parse(payload), _Ear, strict=True))
        is_canonical = canonical(claims_of(result)) == payload
    except (WireError, msgspec.ValidationError, KeyError, ValueError, RecursionError) as error:
        raise refusal("result_malformed") from error
    if not is_canonical:
        raise refusal("result_malformed")
    _refuse_overclaim(result)
    return result


def parse_result(token: str, verifier_public: bytes) -> AttestationResult:
    """The result in an EAR token that `verifier_public` (32 raw bytes) signed.

    Raises `RefusedError`: `result_malformed`, `result_signature_invalid`, `result_overclaimed`.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise refusal("result_malformed")
    return _read(open_token(token, verifier_public, _CODES))


def unverified_result(token: str) -> AttestationResult:
    """The result in a token whose signature another proof checks.

    Raises `RefusedError` (`result_malformed`, `result_overclaimed`).
    """
    try:
        claims = unverified_claims(token)
    except ValueError as error:
        raise refusal("result_malformed") from error
    return _read(claims)


def peek_result(token: str) -> AttestationResult | None:
    """As `unverified_result`; None if the token cannot be read."""
    try:
        return unverified_result(token)
    except RefusedError:
        return None
