"""A hostile allocation against the runner's own parts, up to the release: nothing leaves the operator's machine."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.claims import Observed
from engine.attestation.ear import peek_result
from engine.attestation.measurement import Measurements
from engine.attestation.statements import unverified_payload
from engine.errors import GlasshouseError, RefusedError
from engine.runner import relying_party
from engine.sealing.release import open_release
from engine.wire import (
    ATTEST_EVIDENCE,
    LAUNCH_ACCEPTED,
    RELEASE_DENIED,
    RELEASE_GRANTED,
    RELEASE_PLAN_COMPLETED,
    TRAIN_STARTED,
)
from tests.functional.hostile.pod import SECONDS, Operator, end_of

ELSEWHERE = Measurements(bundle="b1" * 32, lock="10" * 32, environment="e0" * 32)


async def _refusal(operator: Operator) -> str:
    with pytest.raises(GlasshouseError) as caught:
        await asyncio.wait_for(operator.follower().follow(), SECONDS)
    return caught.value.code


async def test_an_honest_answer_opens_the_release(operator: Operator) -> None:
    following = asyncio.create_task(operator.follower().follow())
    release = await operator.released()
    keys = open_release(base64.b64decode(release["ciphertext"]), operator.pod.cnf, base64.b64decode(release["info"]))
    assert len(keys) == 32 * len(operator.context.staging.manifest().files)
    operator.pod.state("failed")
    await end_of(following)


@pytest.mark.parametrize(
    ("change", "code"),
    [({"bundleDigest": "0" * 64}, "measurement_mismatch"), ({"jobDigest": "0" * 64}, "job_mismatch")],
)
async def test_a_launch_of_another_bundle_or_job_ends_the_run(
    operator: Operator, change: dict[str, Any], code: str
) -> None:
    operator.pod.say(LAUNCH_ACCEPTED, operator.launch(**change))
    assert await _refusal(operator) == code
    operator.assert_nothing_released()


async def test_a_second_launch_with_another_key_ends_the_run(operator: Operator) -> None:
    operator.pod.say(LAUNCH_ACCEPTED, operator.launch())
    operator.pod.attester = Ed25519PrivateKey.generate()
    operator.pod.say(LAUNCH_ACCEPTED, operator.launch())
    assert await _refusal(operator) == "launch_repeated"
    operator.assert_nothing_released()


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        ({"measurements": ELSEWHERE}, ["measurement_mismatch", "lock_mismatch", "environment_mismatch"]),
        ({"edits": {"cnf": bytes(range(32))}}, ["cnf_exchanged"]),
        ({"enforcement": {"seccomp": Observed("absent")}}, ["enforcement_missing"]),
        ({"edits": {"tier": "snp", "not_a_hardware_tee_claim": False}}, ["tier_overclaimed"]),
        ({"edits": {"challenge": None}}, ["challenge_mismatch", "nonce_object_mismatch"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
async def test_evidence_that_fails_is_denied_with_its_codes(
    operator: Operator, arguments: dict[str, Any], codes: list[str]
) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.attest(**arguments)
    assert await operator.pod.message("denied.json") == {"codes": codes}
    operator.pod.state("failed")
    await end_of(following)
    operator.assert_nothing_released()
    assert operator.reader.run(operator.run_id).summary.attestation == "rejected"
    assert RELEASE_DENIED in operator.names()
    assert RELEASE_GRANTED not in operator.names()
    assert operator.checks()["attestation_verified"] == "failed"


async def test_malformed_evidence_is_denied(operator: Operator) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.attest("\u2603.a.b")
    assert await operator.pod.message("denied.json") == {"codes": ["evidence_malformed"]}
    operator.pod.state("failed")
    await end_of(following)
    operator.assert_nothing_released()


async def test_evidence_of_an_earlier_challenge_is_denied(operator: Operator) -> None:
    """The attacker withholds a valid answer until it is stale; meanwhile the runner has sent a new challenge."""
    following = asyncio.create_task(operator.follower().follow())
    operator.pod.say(LAUNCH_ACCEPTED, operator.launch())
    operator.pod.state("launching")
    operator.pod.state("attesting")
    kept = await operator.token()
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end_of(following)
    ledger = operator.folder.path / "nonces.json"
    record = json.loads(ledger.read_bytes())
    record["nonces"][0]["at"] -= 121.0
    ledger.write_text(json.dumps(record))
    (operator.pod.folder / "inbox" / "challenge.json").unlink()
    following = asyncio.create_task(operator.restarted().follow())
    await operator.pod.message("challenge.json")
    operator.pod.say(ATTEST_EVIDENCE, {"token": kept})
    denied = await operator.pod.message("denied.json")
    assert denied["codes"][0] == "nonce_expired"
    operator.pod.state("failed")
    await end_of(following)
    operator.assert_nothing_released()


async def test_moving_the_clock_back_does_not_make_old_evidence_fresh(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = asyncio.create_task(operator.follower().follow())
    operator.pod.say(LAUNCH_ACCEPTED, operator.launch())
    operator.pod.state("launching")
    operator.pod.state("attesting")
    token = await operator.token(now=time.time() - 7200)
    monkeypatch.setattr(relying_party, "unix_seconds", lambda: time.time() - 7200)
    ledger = operator.folder.path / "nonces.json"
    record = json.loads(ledger.read_bytes())
    record["nonces"][0]["at"] -= 7200.0
    ledger.write_text(json.dumps(record))
    operator.pod.say(ATTEST_EVIDENCE, {"token": token})
    assert await operator.pod.message("denied.json") == {"codes": ["nonce_expired"]}
    operator.pod.state("failed")
    await end_of(following)
    operator.assert_nothing_released()


async def test_other_evidence_after_the_first_ends_the_run_and_no_second_release_is_made(operator: Operator) -> None:
    follower = operator.follower()
    following = asyncio.create_task(follower.follow())
    first = await operator.released()
    operator.pod.say(ATTEST_EVIDENCE, {"token": "another.token.altogether"})
    with pytest.raises(RefusedError) as caught:
        await end_of(following)
    assert caught.value.code == "evidence_repeated"
    token = operator.reader.evidence(operator.run_id)["token"]["token"]
    result = operator.reader.evidence(operator.run_id)["result"]
    appraised = peek_result(result["token"])
    assert appraised is not None
    assert hashlib.sha256(token.encode()).hexdigest() == appraised.evidence_sha256
    assert await operator.pod.message("release.json") == first
    assert operator.names().count(RELEASE_GRANTED) == 1


async def test_a_restarted_runner_sends_the_same_release_again_and_makes_no_second(operator: Operator) -> None:
    following = asyncio.create_task(operator.follower().follow())
    first = await operator.released()
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end_of(following)
    (operator.pod.folder / "inbox" / "release.json").unlink()
    following = asyncio.create_task(operator.restarted().follow())
    assert await operator.pod.message("release.json") == first
    operator.pod.state("failed")
    await end_of(following)
    assert operator.names().count(RELEASE_GRANTED) == 1


async def test_a_stored_release_that_was_replaced_is_not_sent(operator: Operator) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end_of(following)
    (operator.pod.folder / "inbox" / "release.json").unlink()
    operator.folder.write("release.bin", b"another release")
    with pytest.raises(RefusedError) as caught:
        await asyncio.wait_for(operator.restarted().follow(), SECONDS)
    assert caught.value.code == "release_other_result"
    assert not (operator.pod.folder / "inbox" / "release.json").exists()


async def test_a_pod_that_opened_another_release_ends_the_run(operator: Operator) -> None:
    following = asyncio.create_task(operator.follower().follow())
    message = await operator.released()
    stated = unverified_payload(message["receipt"])["predicate"]
    opened = {
        "segment": "protected",
        "runnerHead": message["runnerHead"],
        "manifestSha256": stated["manifest_sha256"],
        "ciphertextSha256": "0" * 64,
    }
    operator.pod.say(RELEASE_PLAN_COMPLETED, opened)
    with pytest.raises(RefusedError) as caught:
        await end_of(following)
    assert caught.value.code == "release_other_result"


async def test_a_pod_that_claims_a_release_gets_no_key_and_no_clean_row(operator: Operator) -> None:
    operator.pod.say(LAUNCH_ACCEPTED, operator.launch())
    operator.pod.state("launching")
    opened = {"segment": "protected", "runnerHead": "0" * 64, "manifestSha256": "0" * 64, "ciphertextSha256": "0" * 64}
    operator.pod.say(RELEASE_PLAN_COMPLETED, opened)
    operator.pod.state("training")
    operator.pod.say(TRAIN_STARTED, {"segment": "protected", "gpu": None, "settlingSteps": 5, "numerics": {}})
    operator.pod.state("failed")
    await asyncio.wait_for(operator.follower().follow(), SECONDS)
    operator.assert_nothing_released()
    checks = operator.checks()
    assert checks["released_after_result"] == checks["trained_after_release"] == "failed"
    assert checks["attestation_verified"] == checks["zeroization_proven"] == "failed"
