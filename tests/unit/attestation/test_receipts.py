"""Delegation, the release of keys, and the receipts of release and run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.attestation.ear import result_digest, sign_result
from engine.attestation.receipts import (
    DELEGATION,
    RELEASE,
    RUN,
    check_delegation,
    countersign,
    delegate,
    read_release,
    read_run_receipt,
    run_receipt,
    sign,
    statement,
    verify,
)
from engine.attestation.release import prepare_release
from engine.attestation.verifier import AttestationResult, no_evidence
from engine.errors import RefusedError
from engine.sealing.memory import random_keys
from engine.sealing.release import open_release, release_info
from engine.wire import sha256_hex

if TYPE_CHECKING:
    from tests.unit.attestation.conftest import World

OPERATOR, RUN_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
NOW = datetime(2026, 5, 17, 12, tzinfo=UTC)
PLAN = "01" * 32


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RefusedError) as caught:
        call()
    return caught.value.code


def delegation(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"run_id": "run-1", "plan_digest": PLAN, "seconds": 3600.0, "now": NOW}
    return delegate(OPERATOR, raw(RUN_KEY), **{**arguments, **changes})


def checked(envelope: object, **changes: Any) -> bytes:
    arguments: dict[str, Any] = {"run_id": "run-1", "plan_digest": PLAN, "at": NOW + timedelta(minutes=5)}
    return check_delegation(envelope, raw(OPERATOR), **{**arguments, **changes})


def test_a_delegation_names_the_runs_key() -> None:
    assert checked(delegation()) == raw(RUN_KEY)


def test_a_delegation_is_for_one_run_and_plan() -> None:
    assert refusal(lambda: checked(delegation(), run_id="run-2")) == "delegation_other_run"
    assert refusal(lambda: checked(delegation(), plan_digest="02" * 32)) == "delegation_other_run"


@pytest.mark.parametrize("minutes", [-1, 61])
def test_a_delegation_outside_its_time_is_refused(minutes: int) -> None:
    assert refusal(lambda: checked(delegation(), at=NOW + timedelta(minutes=minutes))) == "delegation_expired"


def test_a_delegation_by_somebody_else_is_refused() -> None:
    forged = delegate(RUN_KEY, raw(RUN_KEY), run_id="run-1", plan_digest=PLAN, seconds=10)
    assert refusal(lambda: checked(forged)) == "envelope_signer_unknown"


@pytest.mark.parametrize(
    "change",
    [{"expires": "never"}, {"expires": "2026-05-17T13:00:00"}, {"run_public": "zz"}, {"run_public": "00"}, {"more": 1}],
)
def test_a_signed_delegation_that_is_malformed_is_refused(change: dict[str, Any]) -> None:
    body = verify(delegation(), raw(OPERATOR), DELEGATION)
    forged = sign(statement(DELEGATION, {"plan": PLAN}, {**body, **change}), OPERATOR)
    assert refusal(lambda: checked(forged)) == "predicate_malformed"


def test_a_delegation_with_other_subjects_is_refused() -> None:
    body = verify(delegation(), raw(OPERATOR), DELEGATION)
    forged = sign(statement(DELEGATION, {"plan": PLAN, "run-key": "ff" * 32}, body), OPERATOR)
    assert refusal(lambda: checked(forged)) == "predicate_malformed"


def release(world: World, result: AttestationResult | None, keys: bytearray, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "run_id": "run-1",
        "run_key": world.run_key,
        "runner_head": "0a" * 32,
        "pod_head": "0b" * 32,
    }
    return prepare_release(result, keys, **{**arguments, **changes})


def test_an_accepted_result_releases_the_keys_to_the_attested_key_alone(world: World) -> None:
    keys = random_keys(3)
    result = world.appraise(world.token())
    prepared = release(world, result, keys)
    info = release_info(
        evidence_sha256=result.evidence_sha256,
        policy_sha256=result.policy_sha256,
        manifest_sha256=world.expected.manifest_digest,
        run_id="run-1",
    )
    assert open_release(prepared.ciphertext, world.cnf, info) == keys
    with pytest.raises(RefusedError):
        open_release(prepared.ciphertext, X25519PrivateKey.generate(), info)


def test_the_release_receipt_names_result_ciphertext_and_heads(world: World) -> None:
    result = world.appraise(world.token())
    prepared = release(world, result, random_keys(1))
    body = read_release(prepared.receipt, raw(world.run_key), run_id="run-1")
    assert body == prepared.body
    assert body.result_sha256 == result_digest(sign_result(result, world.run_key))
    assert body.ciphertext_sha256 == sha256_hex(prepared.ciphertext)
    assert (body.runner_head, body.pod_head) == ("0a" * 32, "0b" * 32)
    assert refusal(lambda: read_release(prepared.receipt, raw(world.run_key), run_id="run-2")) == "receipt_other_run"
    assert refusal(lambda: verify(prepared.receipt, raw(world.run_key), RUN)) == "predicate_type"


def test_nothing_is_released_without_an_accepted_result(world: World) -> None:
    denied = world.appraise(world.token(world.claims(debug=True)))
    missing = no_evidence(expected=world.expected, policy=world.policy, now=1.0)
    forced = msgspec.structs.replace(denied, status="warning")
    withdrawn = msgspec.structs.replace(world.appraise(world.token()), status="contraindicated")
    for result in (None, denied, missing, forced, withdrawn):
        assert refusal(lambda given=result: release(world, given, random_keys(1))) == "release_before_result"  # type: ignore[misc]


def test_a_result_of_another_run_releases_nothing(world: World) -> None:
    result = world.appraise(world.token())
    assert refusal(lambda: release(world, result, random_keys(1), run_id="run-2")) == "release_other_result"


def test_one_result_allows_one_release(world: World) -> None:
    result = world.appraise(world.token())
    first = release(world, result, random_keys(1))
    again = [read_release(first.receipt, raw(world.run_key), run_id="run-1")]
    assert refusal(lambda: release(world, result, random_keys(1), previous=again)) == "release_repeated"
    fresh = world.appraise(world.token())
    assert release(world, fresh, random_keys(1), previous=again).body.result_id == fresh.result_id


ROW: dict[str, Any] = {"id": "run-1", "overheadPct": 1.25, "rawSteps": 200}


def receipt(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "run_id": "run-1",
        "row": ROW,
        "plan_digest": PLAN,
        "manifest_sha256": "02" * 32,
        "adapters": {"raw": "03" * 32, "protected": "04" * 32},
        "series": {"raw": "05" * 32, "protected": "06" * 32},
        "runner_head": "07" * 32,
        "pod_head": "08" * 32,
        "delegation": delegation(),
        "bundle_sha256": "09" * 32,
        "challenge": "text",
        "privates": [RUN_KEY],
    }
    return run_receipt(**{**arguments, **changes})


def test_a_run_receipt_covers_exactly_its_row() -> None:
    body = read_run_receipt(receipt(), raw(RUN_KEY), run_id="run-1", row=ROW)
    assert body.adapters == {"raw": "03" * 32, "protected": "04" * 32}
    for other in ({**ROW, "overheadPct": 1.26}, {**ROW, "extra": 1}, {}):
        assert (
            refusal(
                lambda row=other: read_run_receipt(receipt(), raw(RUN_KEY), run_id="run-1", row=row)  # type: ignore[misc]
            )
            == "receipt_other_run"
        )
    assert refusal(lambda: read_run_receipt(receipt(), raw(RUN_KEY), run_id="run-2", row=ROW)) == "receipt_other_run"


def test_a_raw_run_has_no_package() -> None:
    made = receipt(manifest_sha256=None, adapters={"raw": "03" * 32}, series={})
    assert read_run_receipt(made, raw(RUN_KEY), run_id="run-1", row=ROW).manifest_sha256 is None


def test_a_run_receipt_may_carry_the_attesters_signature_too() -> None:
    attester = Ed25519PrivateKey.generate()
    both = countersign(receipt(), attester)
    assert read_run_receipt(both, (raw(RUN_KEY), raw(attester)), run_id="run-1", row=ROW)
    assert refusal(lambda: read_run_receipt(both, raw(RUN_KEY), run_id="run-1", row=ROW)) == "envelope_signer_unknown"


def test_subjects_that_disagree_with_the_predicate_are_refused() -> None:
    body = verify(receipt(), raw(RUN_KEY), RUN)
    forged = sign(statement(RUN, {"row": "ff" * 32}, body), RUN_KEY)
    assert refusal(lambda: read_run_receipt(forged, raw(RUN_KEY), run_id="run-1", row=ROW)) == "predicate_malformed"


def test_a_release_receipt_with_other_fields_is_refused(world: World) -> None:
    prepared = release(world, world.appraise(world.token()), random_keys(1))
    body = verify(prepared.receipt, raw(world.run_key), RELEASE)
    for change in ({"more": 1}, {"run_id": 5}):
        forged = sign(statement(RELEASE, {}, {**body, **change}), world.run_key)
        assert (
            refusal(
                lambda made=forged: read_release(made, raw(world.run_key), run_id="run-1")  # type: ignore[misc]
            )
            == "predicate_malformed"
        )
