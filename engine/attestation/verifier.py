"""The Verifier: appraises evidence against a policy and reference values, and lists every rule that failed.

The result is signed as an EAT Attestation Result (`engine.attestation.ear`). Evidence of the software tier is at best
`warning`, because no hardware vouches for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from engine import __version__
from engine.attestation.challenge import nonce_object
from engine.attestation.claims import ENFORCED, PROFILE, SOFTWARE_NAME, Claims, bound_nonce
from engine.attestation.evidence import parse_evidence
from engine.attestation.measurement import Measurements
from engine.attestation.nonce import NonceLedger
from engine.attestation.policy import HARDWARE_TIERS, SOFTWARE, Policy, policy_digest
from engine.attestation.reasons import REASONS
from engine.errors import RefusedError
from engine.wire import sha256_hex

VERIFIER_BUILD: Final = f"glasshouse {__version__}"
_TOKEN: Final = "token"  # noqa: S105  # the name of a check

Status = Literal["none", "affirming", "warning", "contraindicated"]
TRUST_VALUES: Final = {"none": 0, "affirming": 2, "warning": 32, "contraindicated": 96}

# The checks that decide each entry of the trustworthiness vector.
_IDENTITY: Final = ("freshness", "time", "run", "allocation", "host_key", "gpu", "runner_log", "nonce_object")
_VECTOR: Final[dict[str, tuple[str, ...]]] = {
    "instance-identity": (_TOKEN, *_IDENTITY),
    "configuration": ("policy", "plan", "challenge", "debug", "enforcement", "profile"),
    "executables": ("bundle", "lock"),
    "file-system": ("environment",),
    "hardware": ("tier",),
    "storage-opaque": ("package",),
}


class Expectations(msgspec.Struct, frozen=True, kw_only=True):
    """The reference values of one run. Digests are SHA-256 in hex, keys raw.

    `attester_public` is the key of `launch.accepted`; `ssh_host_key` the digest of the pinned one. `cnf` is compared if
    the allocation announced it separately from the evidence. `nonce` is only for stored evidence, which has no ledger.
    """

    run_id: str
    attester_public: bytes
    measurements: Measurements
    plan_digest: str
    manifest_digest: str
    challenge: str | None
    pod_id: str
    ssh_host_key: str
    runner_head: str
    gpu_uuid: str | None = None
    cnf: bytes | None = None
    nonce: bytes | None = None


class Appraisal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule's outcome. `code` is a key of `REASONS` if it failed, else empty; `hint` says what to do."""

    name: str
    status: Literal["passed", "failed"]
    code: str = ""
    reason: str = ""
    hint: str = ""


class AttestationResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The Verifier's result. `result_id` identifies it for the one release that may be made on it.

    `issued` is in UTC seconds; `verifier_build` the version that appraised; `nonce` the evidence's own `eat_nonce`,
    None if it could not be read. `cnf` (hex) is the attested key, present only if the evidence was accepted.
    """

    result_id: str
    run_id: str
    issued: int
    status: Status
    tier: str
    verifier_build: str
    policy_id: str
    policy_sha256: str
    evidence_sha256: str
    manifest_sha256: str
    nonce: str | None
    trust_vector: dict[str, int]
    checks: tuple[Appraisal, ...]
    cnf: str | None

    @property
    def accepted(self) -> bool:
        """True when no rule failed."""
        return self.status in ("affirming", "warning")

    @property
    def reason_codes(self) -> tuple[str, ...]:
        """The codes of every rule that failed, in the order of the rules."""
        return tuple(check.code for check in self.checks if check.status == "failed")


class _Case:
    """One appraisal: claims compared with expectations.

    Each rule returns None if it passed, else a reason code and a detail.
    """

    def __init__(self, claims: Claims, expected: Expectations, policy: Policy, now: float) -> None:
        self.claims = claims
        self.expected = expected
        self.policy = policy
        self.now = now

    def rules(self) -> dict[str, Callable[[], tuple[str, str] | None]]:
        claims, expected = self.claims, self.expected
        measured, reference = claims.measurements, expected.measurements
        return {
            "run": lambda: _equal("run_mismatch", claims.run_id, expected.run_id),
            "profile": lambda: _equal("profile_unknown", (claims.eat_profile, claims.swname), (PROFILE, SOFTWARE_NAME)),
            "time": self._time,
            "bundle": lambda: _equal("measurement_mismatch", measured.bundle, reference.bundle),
            "lock": lambda: _equal("lock_mismatch", measured.lock, reference.lock),
            "environment": lambda: _equal("environment_mismatch", measured.environment, reference.environment),
            "plan": lambda: _equal("plan_mismatch", claims.plan_digest, expected.plan_digest),
            "policy": lambda: _equal("policy_mismatch", claims.policy_digest, policy_digest(self.policy)),
            "package": lambda: _equal("manifest_mismatch", claims.manifest_digest, expected.manifest_digest),
            "challenge": lambda: _equal("challenge_mismatch", claims.challenge, expected.challenge),
            "allocation": lambda: _equal("pod_mismatch", claims.pod_id, expected.pod_id),
            "host_key": lambda: _equal("host_key_mismatch", claims.ssh_host_key, expected.ssh_host_key),
            "gpu": lambda: _equal("gpu_mismatch", claims.gpu_uuid, expected.gpu_uuid),
            "runner_log": lambda: _equal("head_mismatch", claims.heads.runner, expected.runner_head),
            "nonce_object": self._nonce_object,
            "tier": self._tier,
            "debug": self._debug,
            "enforcement": self._enforcement,
        }

    def _time(self) -> tuple[str, str] | None:
        skew = self.policy.max_clock_skew_seconds
        if self.claims.iat > self.now + skew:
            return "evidence_not_yet_valid", ""
        oldest = self.now - skew - self.policy.max_evidence_age_seconds
        if self.claims.iat < oldest or self.claims.exp < self.now - skew:
            return "evidence_expired", ""
        return None

    def _nonce_object(self) -> tuple[str, str] | None:
        claims, expected = self.claims, self.expected
        if expected.cnf is not None and expected.cnf != claims.cnf:
            return "cnf_exchanged", ""
        if claims.eat_nonce == bound_nonce(claims):
            return None
        all_else_matches = bound_nonce(claims) == nonce_object(
            nonce=claims.nonce,
            cnf=claims.cnf,
            attester_public=claims.attester_key,
            measurements=expected.measurements,
            policy_digest=policy_digest(self.policy),
            plan_digest=expected.plan_digest,
            manifest_digest=expected.manifest_digest,
            challenge=expected.challenge,
            run_id=expected.run_id,
            pod_id=expected.pod_id,
            ssh_host_key=expected.ssh_host_key,
            gpu_uuid=expected.gpu_uuid,
        )
        return ("cnf_exchanged" if all_else_matches else "nonce_object_mismatch"), ""

    def _tier(self) -> tuple[str, str] | None:
        claims = self.claims
        has_report = any("report" in submod for submod in claims.submods.values())
        if claims.tier == SOFTWARE:
            if not claims.not_a_hardware_tee_claim:
                return "tier_overclaimed", ""
            return None if SOFTWARE in self.policy.tiers else ("tier_not_allowed", SOFTWARE)
        if claims.not_a_hardware_tee_claim or not has_report:
            return "tier_overclaimed", ""
        return "tier_unsupported", claims.tier if claims.tier in HARDWARE_TIERS else "unknown"

    def _debug(self) -> tuple[str, str] | None:
        return ("debug_enabled", "") if self.claims.dbgstat == "enabled" and not self.policy.allow_debug else None

    def _enforcement(self) -> tuple[str, str] | None:
        missing = [
            name
            for name in self.policy.required_controls
            if name not in self.claims.enforcement or self.claims.enforcement[name].value != ENFORCED
        ]
        return ("enforcement_missing", ", ".join(missing)) if missing else None


def _equal(code: str, claimed: object, expected: object) -> tuple[str, str] | None:
    return None if claimed == expected else (code, "")


def _freshness(claims: Claims, expected: Expectations, nonces: NonceLedger | None) -> Appraisal:
    if nonces is None:
        return _appraisal("freshness", _equal("nonce_unknown", claims.nonce, expected.nonce))
    try:
        nonces.redeem(claims.nonce, expected.run_id)
    except RefusedError as error:
        return _appraisal("freshness", (error.code, ""))
    return _appraisal("freshness", None)


def _appraisal(name: str, failure: tuple[str, str] | None) -> Appraisal:
    if failure is None:
        return Appraisal(name=name, status="passed")
    code, detail = failure
    sentence, hint = REASONS[code]
    reason = f"{sentence[:-1]}: {detail}." if detail else sentence
    return Appraisal(name=name, status="failed", code=code, reason=reason, hint=hint)


def appraise(
    token: str,
    *,
    expected: Expectations,
    policy: Policy,
    nonces: NonceLedger | None,
    now: float,
) -> AttestationResult:
    """Appraise evidence; `now` is UTC in seconds. Never raises because of the token's content: it lists failed rules.

    A nonce in evidence that the attester's key has signed is used up, whatever the result. `nonces` is None only for
    stored evidence, whose freshness was decided on arrival: it must then carry `expected.nonce`.
    """
    try:
        claims = parse_evidence(token, expected.attester_public)
    except RefusedError as error:
        checks: tuple[Appraisal, ...] = (_appraisal(_TOKEN, (error.code, "")),)
        return _result(token, None, expected, policy, checks, now)
    rules = _Case(claims, expected, policy, now).rules()
    checks = (
        _appraisal(_TOKEN, None),
        _freshness(claims, expected, nonces),
        *(_appraisal(name, rule()) for name, rule in rules.items()),
    )
    return _result(token, claims, expected, policy, checks, now)


def _status(claims: Claims | None, checks: tuple[Appraisal, ...]) -> Status:
    if claims is None or any(check.status == "failed" for check in checks):
        return "contraindicated"
    return "warning" if claims.tier == SOFTWARE else "affirming"


def _vector(status: Status, tier: str, checks: tuple[Appraisal, ...]) -> dict[str, int]:
    failed = {check.name for check in checks if check.status == "failed"}
    performed = {check.name for check in checks}
    best = TRUST_VALUES["warning" if tier == SOFTWARE else "affirming"]
    vector = {}
    for entry, names in _VECTOR.items():
        if failed & set(names):
            vector[entry] = TRUST_VALUES["contraindicated"]
        elif performed >= set(names) and not (entry == "hardware" and tier == SOFTWARE):
            vector[entry] = best
        else:
            vector[entry] = TRUST_VALUES["none"]
    return vector


def _result(
    token: str,
    claims: Claims | None,
    expected: Expectations,
    policy: Policy,
    checks: tuple[Appraisal, ...],
    now: float,
) -> AttestationResult:
    status = _status(claims, checks)
    tier = claims.tier if claims is not None else "unknown"
    accepted = claims is not None and status != "contraindicated"
    return AttestationResult(
        result_id=secrets.token_hex(16),
        run_id=expected.run_id,
        issued=int(now),
        status=status,
        tier=tier,
        verifier_build=VERIFIER_BUILD,
        policy_id=policy.id,
        policy_sha256=policy_digest(policy),
        evidence_sha256=sha256_hex(token.encode("utf-8", "surrogatepass")),
        manifest_sha256=expected.manifest_digest,
        nonce=None if claims is None else claims.eat_nonce,
        trust_vector=_vector(status, tier, checks),
        checks=checks,
        cnf=claims.cnf.hex() if accepted and claims is not None else None,
    )


def no_evidence(*, expected: Expectations, policy: Policy, now: float) -> AttestationResult:
    """The result if no evidence arrived by `now`, UTC in seconds: status `none`, nothing accepted."""
    empty = _result("", None, expected, policy, (), now)
    return msgspec.structs.replace(empty, status="none")
