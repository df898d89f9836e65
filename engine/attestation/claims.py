"""The claims of evidence: those of EAT (RFC 9711) where it defines one, and our own."""

from __future__ import annotations

import secrets
from typing import Final

import msgspec

from engine.attestation.challenge import Challenge, nonce_object
from engine.attestation.measurement import Measurements
from engine.attestation.policy import SOFTWARE

PROFILE: Final = "urn:glasshouse:eat:1"
SOFTWARE_NAME: Final = "glasshouse-worker"
EVIDENCE_SECONDS: Final = 120
ENFORCED: Final = "enforced"

Scalar = str | int | float | bool | None


class Observed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One control as it was observed: `enforced`, `absent`, `not_attempted` or `failed:<reason>`."""

    value: str
    detail: str = ""


class Heads(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The heads of both logs when the evidence was made, SHA-256 in hex."""

    runner: str
    pod: str


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The content of evidence. Keys and the nonce are raw bytes, digests SHA-256 in hex, times UTC seconds.

    `eat_nonce` is the nonce object; `nonce` the Verifier's nonce in it. `enforcement` maps the names of
    `policy.CONTROLS` to what was observed. `submods` are flat claims about process, cpu and gpu0. `jti` is new in every
    token. There is no `ueid`: RFC 9711 (section 4.2.1) requires it to be permanent and globally unique, and a container
    that is rented for minutes has no identity of that kind. What one allocation says is linked by `pod_id`,
    `ssh_host_key` and `attester_key`.
    """

    eat_profile: str = PROFILE
    eat_nonce: str
    iat: int
    exp: int
    jti: str
    hwmodel: str
    swname: str
    swversion: str
    dbgstat: str
    measurements: Measurements
    submods: dict[str, dict[str, Scalar]]
    cnf: bytes
    tier: str
    run_id: str
    nonce: bytes
    attester_key: bytes
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


def make_claims(
    challenge: Challenge,
    *,
    attester_public: bytes,
    cnf: bytes,
    measurements: Measurements,
    enforcement: dict[str, Observed],
    pod_head: str,
    pod_id: str,
    ssh_host_key: str,
    gpu_uuid: str | None,
    hwmodel: str,
    swversion: str,
    submods: dict[str, dict[str, Scalar]],
    now: float,
    tier: str = SOFTWARE,
    debug: bool = False,
) -> Claims:
    """The claims that answer a challenge, with the nonce object computed over what they bind.

    `now`: UTC seconds.
    """
    return Claims(
        eat_nonce=nonce_object(
            nonce=challenge.nonce_bytes,
            cnf=cnf,
            attester_public=attester_public,
            measurements=measurements,
            policy_digest=challenge.policy_digest,
            plan_digest=challenge.plan_digest,
            manifest_digest=challenge.manifest_digest,
            challenge=challenge.challenge,
            run_id=challenge.run_id,
            pod_id=pod_id,
            ssh_host_key=ssh_host_key,
            gpu_uuid=gpu_uuid,
        ),
        iat=int(now),
        exp=int(now) + EVIDENCE_SECONDS,
        jti=secrets.token_hex(16),
        hwmodel=hwmodel,
        swname=SOFTWARE_NAME,
        swversion=swversion,
        dbgstat="enabled" if debug else "disabled",
        measurements=measurements,
        submods=submods,
        cnf=cnf,
        tier=tier,
        run_id=challenge.run_id,
        nonce=challenge.nonce_bytes,
        attester_key=attester_public,
        plan_digest=challenge.plan_digest,
        manifest_digest=challenge.manifest_digest,
        policy_digest=challenge.policy_digest,
        challenge=challenge.challenge,
        pod_id=pod_id,
        ssh_host_key=ssh_host_key,
        gpu_uuid=gpu_uuid,
        enforcement=enforcement,
        heads=Heads(runner=challenge.runner_head, pod=pod_head),
        not_a_hardware_tee_claim=tier == SOFTWARE,
    )


def bound_nonce(claims: Claims) -> str:
    """The nonce object recomputed over these claims; equals their `eat_nonce` when nothing was exchanged."""
    return nonce_object(
        nonce=claims.nonce,
        cnf=claims.cnf,
        attester_public=claims.attester_key,
        measurements=claims.measurements,
        policy_digest=claims.policy_digest,
        plan_digest=claims.plan_digest,
        manifest_digest=claims.manifest_digest,
        challenge=claims.challenge,
        run_id=claims.run_id,
        pod_id=claims.pod_id,
        ssh_host_key=claims.ssh_host_key,
        gpu_uuid=claims.gpu_uuid,
    )
