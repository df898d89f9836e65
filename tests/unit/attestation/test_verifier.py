"""The appraisal: the honest path, and one refusal for each thing that can be exchanged."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.attestation.claims import Observed
from engine.attestation.ear import sign_result
from engine.attestation.evidence import sign_evidence
from engine.attestation.measurement import Measurements
from engine.attestation.policy import Policy, policy_digest
from engine.attestation.reasons import REASONS
from engine.attestation.verifier import AttestationResult, appraise, no_evidence

if TYPE_CHECKING:
    from tests.unit.attestation.conftest import World

NOW = 1_790_000_000.0


def test_honest_evidence_is_accepted_and_never_better_than_warning(world: World) -> None:
    result = world.appraise(world.token())
    assert result.reason_codes == ()
    assert result.accepted
    assert result.status == "warning"
    assert result.tier == "software"
    assert result.cnf == world.cnf_public.hex()
    assert result.policy_sha256 == policy_digest(world.policy)
    assert all(check.status == "passed" for check in result.checks)
    assert set(result.trust_vector.values()) == {0, 32}
    assert result.trust_vector["hardware"] == 0


def test_each_appraisal_has_its_own_result(world: World) -> None:
    one, two = world.appraise(world.token()), world.appraise(world.token())
    assert one.result_id != two.result_id
    assert sign_result(one, world.run_key) != sign_result(two, world.run_key)


def test_no_evidence_is_status_none(world: World) -> None:
    result = no_evidence(expected=world.expected, policy=world.policy, now=NOW)
    assert result.status == "none"
    assert not result.accepted
    assert result.cnf is None


EXCHANGED: list[tuple[str, dict[str, Any], str]] = [
    ("run", {"run_id": "run-2"}, "run_mismatch"),
    ("plan", {"plan_digest": "ff" * 32}, "plan_mismatch"),
    ("package", {"manifest_digest": "ff" * 32}, "manifest_mismatch"),
    ("challenge", {"challenge": "another text"}, "challenge_mismatch"),
    ("no challenge", {"challenge": None}, "challenge_mismatch"),
    ("policy", {"policy_digest": "ff" * 32}, "policy_mismatch"),
    ("runner head", {"runner_head": "ff" * 32}, "head_mismatch"),
]


@pytest.mark.parametrize(("what", "change", "code"), EXCHANGED, ids=[what for what, _, _ in EXCHANGED])
def test_evidence_about_something_else_is_refused(world: World, what: str, change: dict[str, Any], code: str) -> None:
    claims = world.claims(world.challenge(**change))
    assert code in world.codes(world.token(claims))


MEASURED: list[tuple[dict[str, Any], str]] = [
    ({"pod_id": "pod-2"}, "pod_mismatch"),
    ({"ssh_host_key": "ff" * 32}, "host_key_mismatch"),
    ({"gpu_uuid": "GPU-2"}, "gpu_mismatch"),
    ({"gpu_uuid": None}, "gpu_mismatch"),
    ({"debug": True}, "debug_enabled"),
    ({"measurements": Measurements(bundle="ff" * 32, lock="10" * 32, environment="e0" * 32)}, "measurement_mismatch"),
    ({"measurements": Measurements(bundle="b1" * 32, lock="ff" * 32, environment="e0" * 32)}, "lock_mismatch"),
    ({"measurements": Measurements(bundle="b1" * 32, lock="10" * 32, environment="ff" * 32)}, "environment_mismatch"),
]


@pytest.mark.parametrize(("arguments", "code"), MEASURED, ids=[code for _, code in MEASURED])
def test_evidence_from_somewhere_else_is_refused_for_that_reason_only(
    world: World, arguments: dict[str, Any], code: str
) -> None:
    assert world.codes(world.token(world.claims(**arguments))) == (code,)


def test_a_receiving_key_exchanged_after_the_nonce_object_is_refused(world: World) -> None:
    other = X25519PrivateKey.generate().public_key().public_bytes_raw()
    assert world.codes(world.token(cnf=other)) == ("cnf_exchanged",)


def test_a_receiving_key_other_than_the_announced_one_is_refused(world: World) -> None:
    other = X25519PrivateKey.generate().public_key().public_bytes_raw()
    assert world.codes(world.token(), cnf=other) == ("cnf_exchanged",)
    assert world.appraise(world.token(), cnf=world.cnf_public).accepted


def test_a_part_exchanged_after_the_nonce_object_breaks_it_too(world: World) -> None:
    assert world.codes(world.token(pod_id="pod-2")) == ("pod_mismatch", "nonce_object_mismatch")


def test_replayed_evidence_is_refused(world: World) -> None:
    token = world.token()
    assert world.appraise(token).accepted
    assert world.codes(token) == ("nonce_replayed",)


def test_evidence_replayed_to_a_restarted_runner_is_refused(world: World) -> None:
    token = world.token()
    assert world.appraise(token).accepted
    world.ledger = world.new_ledger()
    assert world.codes(token) == ("nonce_replayed",)


def test_a_nonce_that_was_never_issued_is_refused(world: World) -> None:
    invented = base64.b64encode(bytes(32)).decode()
    assert world.codes(world.token(world.claims(world.challenge(nonce=invented)))) == ("nonce_unknown",)


def test_a_nonce_of_another_run_is_refused(world: World) -> None:
    other = base64.b64encode(world.ledger.issue("run-2")).decode()
    assert world.codes(world.token(world.claims(world.challenge(nonce=other)))) == ("nonce_other_run",)


def test_an_expired_nonce_is_refused_whatever_the_wall_clock_says(world: World) -> None:
    token = world.token()
    world.clock.seconds += 121
    assert world.codes(token, now=NOW - 1) == ("nonce_expired",)


def test_evidence_that_fails_uses_its_nonce_up(world: World) -> None:
    claims = world.claims()
    assert world.codes(world.token(claims, pod_id="pod-2"))
    assert world.codes(world.token(claims)) == ("nonce_replayed",)


def test_evidence_of_an_unknown_signer_does_not_use_the_nonce_up(world: World) -> None:
    claims = world.claims()
    forged = sign_evidence(
        msgspec.structs.replace(
            claims, attester_key=(other := Ed25519PrivateKey.generate()).public_key().public_bytes_raw()
        ),
        other,
    )
    assert world.codes(forged) == ("attester_key_unknown",)
    assert world.appraise(world.token(claims)).accepted


@pytest.mark.parametrize(("shift", "code"), [(120 + 300 + 2, "evidence_expired"), (-301, "evidence_not_yet_valid")])
def test_evidence_outside_its_time_is_refused(world: World, shift: float, code: str) -> None:
    assert world.codes(world.token(), now=NOW + shift) == (code,)


def test_evidence_whose_own_expiry_is_past_is_refused(world: World) -> None:
    assert world.codes(world.token(exp=int(NOW) + 1), now=NOW + 302) == ("evidence_expired",)


def test_a_late_expiry_in_the_token_does_not_extend_the_allowed_age(world: World) -> None:
    assert world.codes(world.token(exp=int(NOW) + 10**6), now=NOW + 422) == ("evidence_expired",)


@pytest.mark.parametrize(
    ("edits", "code"),
    [
        ({"not_a_hardware_tee_claim": False}, "tier_overclaimed"),
        ({"tier": "snp"}, "tier_overclaimed"),
        ({"tier": "snp", "submods": {"cpu": {"report": "AAAA"}}}, "tier_overclaimed"),
        ({"tier": "snp", "not_a_hardware_tee_claim": False}, "tier_overclaimed"),
        (
            {"tier": "snp", "not_a_hardware_tee_claim": False, "submods": {"cpu": {"report": "AAAA"}}},
            "tier_unsupported",
        ),
        (
            {"tier": "enclave-9", "not_a_hardware_tee_claim": False, "submods": {"cpu": {"report": "AAAA"}}},
            "tier_unsupported",
        ),
    ],
)
def test_a_tier_beyond_software_is_refused(world: World, edits: dict[str, Any], code: str) -> None:
    result = world.appraise(world.token(**edits))
    assert result.reason_codes == (code,)
    assert result.trust_vector["hardware"] == 96


def test_a_policy_without_the_software_tier_refuses_it(world: World) -> None:
    policy = msgspec.structs.replace(world.policy, tiers=("snp",))
    claims = world.claims(world.challenge(policy_digest=policy_digest(policy)))
    assert world.codes(world.token(claims), policy=policy) == ("tier_not_allowed",)


@pytest.mark.parametrize("value", ["absent", "not_attempted", "failed:EPERM", "Enforced", ""])
def test_a_required_control_that_is_not_enforced_is_refused_by_name(world: World, value: str) -> None:
    claims = world.claims()
    result = world.appraise(world.token(enforcement={**claims.enforcement, "seccomp": Observed(value)}))
    assert result.reason_codes == ("enforcement_missing",)
    assert "seccomp" in result.checks[-1].reason


def test_a_required_control_that_is_not_reported_is_refused(world: World) -> None:
    assert world.codes(world.token(enforcement={})) == ("enforcement_missing",)


def test_a_control_that_the_policy_does_not_require_may_be_absent(world: World) -> None:
    claims = world.claims()
    enforcement = {**claims.enforcement, "network_namespace": Observed("absent"), "landlock_fs": Observed("absent")}
    assert world.appraise(world.token(claims, enforcement=enforcement)).accepted


def test_another_profile_is_refused(world: World) -> None:
    assert world.codes(world.token(eat_profile="urn:other")) == ("profile_unknown",)


def test_the_operators_policy_applies_and_not_the_attesters(world: World) -> None:
    lax = msgspec.structs.replace(world.policy, required_controls=())
    claims = world.claims(world.challenge(policy_digest=policy_digest(lax)), enforcement={})
    assert world.codes(world.token(claims)) == ("policy_mismatch", "enforcement_missing")


def test_every_failed_rule_is_listed(world: World) -> None:
    claims = world.claims(pod_id="pod-2", debug=True, enforcement={})
    assert world.codes(world.token(claims)) == ("pod_mismatch", "debug_enabled", "enforcement_missing")


def test_every_failure_says_what_to_do(world: World) -> None:
    result = world.appraise(world.token(world.claims(debug=True)))
    failed = [check for check in result.checks if check.status == "failed"]
    assert [(check.reason, check.hint) for check in failed] == [REASONS["debug_enabled"]]


@pytest.mark.parametrize("token", ["", "a.b.c", "\ud800.b.c", "é" * 10, "x" * 70_000])
def test_an_invalid_token_gives_a_result_and_no_exception(world: World, token: str) -> None:
    result = world.appraise(token)
    assert result.status == "contraindicated"
    assert result.reason_codes[0] in ("evidence_malformed", "evidence_too_large")
    assert result.tier == "unknown"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_no_changed_character_is_accepted(world: World, data: st.DataObject) -> None:
    token = world.one_token
    position = data.draw(st.integers(0, len(token) - 1))
    character = data.draw(st.sampled_from("Aaz09-_.=é \n"))
    if token[position] != character:
        assert world.codes(token[:position] + character + token[position + 1 :])


def stored(world: World, token: str, nonce: bytes) -> AttestationResult:
    expected = msgspec.structs.replace(world.expected, nonce=nonce)
    return appraise(token, expected=expected, policy=world.policy, nonces=None, now=NOW)


def test_stored_evidence_must_carry_the_recorded_nonce(world: World) -> None:
    claims = world.claims()
    token = world.token(claims)
    assert stored(world, token, claims.nonce).accepted
    assert stored(world, token, bytes(32)).reason_codes == ("nonce_unknown",)


def test_resigned_claims_that_do_not_fit_the_schema_are_refused(
    world: World, resigned: Callable[[dict[str, Any], dict[str, Any]], str]
) -> None:
    for change in ({"extra": 1}, {"iat": "now"}, {"tier": None}, {"heads": {"runner": "x"}}):
        assert world.codes(resigned({}, change)) == ("evidence_claims",)


def test_a_narrower_policy_of_the_operator_is_enforced(world: World) -> None:
    narrow: Policy = msgspec.structs.replace(
        world.policy, required_controls=(*world.policy.required_controls, "mlockall")
    )
    challenge = world.challenge(policy_digest=policy_digest(narrow))
    claims = world.claims(challenge)
    weak = {**claims.enforcement, "mlockall": Observed("failed:EPERM")}
    assert world.codes(world.token(claims, enforcement=weak), policy=narrow) == ("enforcement_missing",)
