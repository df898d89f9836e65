"""Artifacts whose signatures are all valid: their content is checked too, each fault with its own code.

The forger has all keys and is trusted. It can fabricate a fully consistent row, which software attestation cannot
prevent; but every inconsistency in what it signs is refused.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engine.attestation.policy import default_policy
from engine.attestation.signers import TrustedKeys, trust_line, trusted_key
from engine.records.trust import Anchors, rebuilt
from engine.records.verify import Verification, verify_bytes
from engine.store.views import RunView, Series
from engine.wire import (
    ADAPTER_COLLECTED,
    ADAPTER_SAVED,
    ADAPTER_SEALED,
    ALLOCATION_GONE,
    ANTI_DEBUG_READY,
    ATTEST_RESULT,
    LAUNCH_ACCEPTED,
    MEASURED,
    PACKAGE_SEALED,
    RELEASE_GRANTED,
    RELEASE_PLAN_COMPLETED,
    RUN_CLOSED,
    TRAIN_CHECKPOINT,
    TRAIN_FINISHED,
    TRAIN_PROGRESS,
    ZEROIZE_SCAN,
    canonical,
    sha256_hex,
)
from tests.functional.runs.forger import Edit, Forger, public
from tests.functional.runs.support import Operator

Finished = tuple[Operator, RunView]


def verified(exported: dict[str, Any], **edits: Edit) -> Verification:
    """The verification of the forgery by a verifier who trusts the forger."""
    forger = Forger(exported, **edits)
    document = forger.build()
    if "finish" in edits:
        document = edits["finish"](document)
    trusted = TrustedKeys.given([trusted_key(trust_line(public(forger.operator)))])
    return verify_bytes(json.dumps(document).encode(), Anchors(trusted=trusted, policies=(default_policy(),)))


def failures(verification: Verification) -> dict[str, str]:
    """The code of each proof that failed."""
    return {proof.name: proof.code for proof in verification.proofs if proof.status == "failed"}


def struct(**fields: Any) -> Edit:
    """Other values in a struct."""
    return lambda value: msgspec.structs.replace(value, **fields)


def entries(**fields: Any) -> Edit:
    """Other values in a JSON object."""
    return lambda value: value | fields


def dropped(_: Any) -> None:
    """An edit that drops the event."""
    return


def without_control(receipt: Any) -> Any:
    """A receipt whose scan before the wipe did not find the content key, so that its control failed."""
    before = {
        target: msgspec.structs.replace(scan, hits=dict.fromkeys(scan.hits, 0))
        for target, scan in receipt.before.items()
    }
    return msgspec.structs.replace(receipt, before=before)


def with_hits(receipt: Any) -> Any:
    """A receipt whose scan after the wipe has hits."""
    after = {
        target: msgspec.structs.replace(scan, hits=dict.fromkeys(scan.hits, 1))
        for target, scan in receipt.after.items()
    }
    return msgspec.structs.replace(receipt, after=after)


def without_process(receipt: Any) -> Any:
    """A receipt that leaves out the trainer among the processes that ended."""
    return msgspec.structs.replace(receipt, processes=receipt.processes[:-2])


def with_gpu(body: dict[str, Any]) -> dict[str, Any]:
    """A launch that saw a GPU, which the receipt does not mention."""
    return body | {"gpu": {"uuid": "GPU-1", "name": "NVIDIA H100", "driver": "550"}}


def faster(series: dict[str, Series]) -> dict[str, Series]:
    """Invented step times of the protected segment."""
    one = series["protected"]
    return series | {"protected": Series(losses=one.losses, nanos=tuple(taken // 2 for taken in one.nanos))}


def without_seccomp(body: dict[str, Any]) -> dict[str, Any]:
    """The trainer's own report lacks a control that the evidence has."""
    reports = body["enforcement"]
    other = reports["trainer"] | {"seccomp": {"value": "absent", "detail": ""}}
    return body | {"enforcement": reports | {"trainer": other}}


def better_reasons(row: dict[str, Any]) -> dict[str, Any]:
    """The same verdicts with other reasons."""
    return row | {"checks": [check | {"reason": "verified in hardware"} for check in row["checks"]]}


def appended(series: dict[str, Series]) -> dict[str, Series]:
    """Steps of the raw segment that the log does not have."""
    one = series["raw"]
    return series | {"raw": Series(losses=(*one.losses, one.losses[-1]), nanos=(*one.nanos, 1_000_000))}


def with_logged_hits(body: dict[str, Any]) -> dict[str, Any]:
    """The logged scan after the wipe has hits."""
    return body | {"hits": dict.fromkeys(body["hits"], 7)} if body["moment"] == "after" else body


def other_tensors_in_raw(body: dict[str, Any]) -> dict[str, Any]:
    """The raw segment has other tensors at a checkpoint."""
    return body | {"tensorDigest": "0" * 64} if body["segment"] == "raw" else body


def test_a_consistent_forgery_passes_when_the_forger_is_trusted(exported: dict[str, Any]) -> None:
    """The software tier cannot detect this; it shows that the other tests here fail only because of their edits."""
    verification = verified(exported)
    assert failures(verification) == {}
    assert (verification.genuine, verification.clean) == (True, True)


def test_a_training_that_the_plan_cannot_produce_is_refused(exported: dict[str, Any]) -> None:
    """More steps than its plan, consistent in everything else."""
    fewer = exported["stepBudget"] - 1
    verification = verified(exported, plan=lambda plan: plan | {"target": {"seconds": None, "steps": fewer}})
    assert failures(verification)["training"] == "steps_over_plan"


@pytest.mark.parametrize(
    ("edits", "proof", "code"),
    [
        ({"row": entries(overheadPct=-5.0)}, "row", "row_mismatch"),
        ({"row": entries(rawFinalLoss=0.1)}, "row", "row_mismatch"),
        ({"row": entries(clean=False)}, "row", "row_mismatch"),
        ({"row": entries(gpuModel="NVIDIA H100 80GB HBM3")}, "row", "row_mismatch"),
        ({"row": entries(challenge="asked for later")}, "challenge", "challenge_mismatch"),
        ({"row": entries(seed=1)}, "row", "row_mismatch"),
        ({"row": entries(protectedAdapterSha256="a" * 64)}, "run_receipt", "receipt_mismatch"),
        ({"series": faster}, "row", "row_mismatch"),
        ({"plan": lambda plan: plan | {"challenge": None}}, "row", "row_mismatch"),
        ({"policy": entries(allowDebug=True)}, "policy", "policy_loosened"),
        ({"policy": entries(requiredControls=[])}, "policy", "policy_loosened"),
        ({"claims": struct(dbgstat="enabled")}, "evidence", "debug_enabled"),
        ({"claims": struct(tier="snp", not_a_hardware_tee_claim=False)}, "evidence", "tier_overclaimed"),
        ({"claims": struct(enforcement={})}, "evidence", "enforcement_missing"),
        ({"claims": struct(challenge="another")}, "evidence", "challenge_mismatch"),
        ({"claims": struct(cnf=bytes(31) + b"\x01")}, "result", "result_mismatch"),
        ({"result": struct(status="affirming")}, "result", "result_overclaimed"),
        ({"result": struct(tier="snp", status="affirming")}, "result", "result_overclaimed"),
        (
            {"result": struct(tier="snp", status="affirming", trust_vector={"hardware": 2})},
            "evidence",
            "result_mismatch",
        ),
        ({"result": struct(policy_id="strict-nist")}, "evidence", "result_mismatch"),
        ({"result": struct(trust_vector={"hardware": 2})}, "result", "result_overclaimed"),
        ({"result": struct(trust_vector={"hardware": 32})}, "evidence", "result_mismatch"),
        ({"result": struct(nonce="0" * 64)}, "result", "result_mismatch"),
        ({"result": struct(nonce=None)}, "result", "result_mismatch"),
        ({"result": struct(verifier_build="glasshouse 99.9")}, "result", "result_mismatch"),
        ({"result": struct(issued=1)}, "evidence", "evidence_not_yet_valid"),
        ({"ear": entries(eat_profile="tag:github.com,2023:veraison/ear")}, "result", "result_malformed"),
        ({"ear": entries(submods={})}, "result", "result_malformed"),
        ({"ear": entries(exp=10**10)}, "result", "result_malformed"),
        ({"row": entries(note="Attested by hardware.")}, "row", "row_mismatch"),
        ({"row": entries(costUsd=123456.0)}, "row", "row_mismatch"),
        ({"row": entries(version="99.9")}, "row", "row_mismatch"),
        ({"row": entries(startedAt="1999-01-01T00:00:00.000Z")}, "row", "row_mismatch"),
        ({"row": entries(finishedAt="9999-99-99T99:99:99Z")}, "row", "predicate_malformed"),
        ({"row": entries(finishedAt=None)}, "row", "row_mismatch"),
        ({"row": entries(reason="attestation_failed")}, "row", "row_mismatch"),
        ({"row": entries(state="running")}, "row", "row_mismatch"),
        ({"row": better_reasons}, "row", "row_mismatch"),
        ({"row": entries(cleanupState="not_ours")}, "row", "row_mismatch"),
        ({f"runner:{ALLOCATION_GONE}": dropped}, "row", "row_mismatch"),
        ({f"runner:{ALLOCATION_GONE}": entries(count=None)}, "row", "row_mismatch"),
        ({f"runner:{ALLOCATION_GONE}": entries(listings=0)}, "row", "row_mismatch"),
        ({"plan": entries(order="protected-first")}, "logs", "log_contradicts"),
        ({f"runner:{PACKAGE_SEALED}": entries(planDigest="0" * 64)}, "run_receipt", "receipt_mismatch"),
        ({f"pod:{TRAIN_FINISHED}": entries(elapsedNs=5)}, "series", "series_mismatch"),
        ({f"pod:{TRAIN_FINISHED}": entries(steps=1)}, "series", "series_mismatch"),
        ({f"pod:{TRAIN_PROGRESS}": dropped}, "series", "series_mismatch"),
        ({f"pod:{RUN_CLOSED}": entries(runnerHead=None)}, "logs", "log_broken"),
        ({"series": appended}, "series", "series_mismatch"),
        ({f"pod:{ADAPTER_SAVED}": entries(tensorDigest="0" * 64)}, "logs", "log_contradicts"),
        ({f"pod:{ADAPTER_SEALED}": entries(nonceSha256="0" * 64)}, "logs", "log_contradicts"),
        ({f"pod:{ZEROIZE_SCAN}": with_logged_hits}, "logs", "log_contradicts"),
        ({"result": struct(run_id="0" * 12)}, "result", "result_mismatch"),
        ({"release": struct(cnf_public="0" * 64)}, "release", "release_other_result"),
        ({"release": struct(result_id="0" * 32)}, "release", "release_other_result"),
        ({"release": struct(ciphertext_sha256="0" * 64)}, "release", "release_other_result"),
        ({f"pod:{RELEASE_PLAN_COMPLETED}": entries(ciphertextSha256="0" * 64)}, "release", "release_other_result"),
        ({"zeroization": without_control}, "row", "row_mismatch"),
        ({"zeroization": with_hits}, "row", "row_mismatch"),
        ({"zeroization": struct(nonce_sha256="0" * 64)}, "zeroization", "receipt_other_run"),
        ({"zeroization": struct(adapter_sha256="0" * 64)}, "zeroization", "zeroization_other_log"),
        ({"zeroization": struct(pod_head="0" * 64)}, "zeroization", "zeroization_other_log"),
        ({"zeroization": struct(methods=[])}, "zeroization", "zeroization_constants"),
        ({"zeroization": struct(sanitization="NIST SP 800-88 Purge")}, "zeroization", "zeroization_constants"),
        ({"zeroization": struct(began="2999-01-01T00:00:00.000Z")}, "zeroization", "zeroization_times"),
        ({"zeroization": struct(processes_unseen=10_000)}, "row", "row_mismatch"),
        ({"zeroization": without_process}, "row", "row_mismatch"),
        ({f"pod:{LAUNCH_ACCEPTED}": with_gpu}, "zeroization", "zeroization_device_missing"),
        ({"release": struct(policy_sha256="0" * 64)}, "release", "release_other_result"),
        ({"release": struct(result_sha256="0" * 64)}, "release", "release_other_result"),
        ({"release": struct(pod_head="0" * 64)}, "release", "release_other_result"),
        ({"release": struct(released="2000-01-01T00:00:00.000Z")}, "release", "release_other_result"),
        ({"closing": struct(closed="2000-01-01T00:00:00.000Z")}, "logs", "log_broken"),
        ({"closing": struct(runner_head="0" * 64)}, "logs", "log_broken"),
        ({"claims": struct(swname="another-worker")}, "evidence", "profile_unknown"),
        ({"closing": struct(pod_head="0" * 64)}, "logs", "log_broken"),
        ({f"pod:{RELEASE_PLAN_COMPLETED}": entries(runnerHead="0" * 64)}, "order", "order_broken"),
        ({f"pod:{RELEASE_PLAN_COMPLETED}": entries(manifestSha256="0" * 64)}, "release", "release_other_result"),
        ({f"pod:{TRAIN_CHECKPOINT}": other_tensors_in_raw}, "row", "row_mismatch"),
        ({f"pod:{MEASURED}": dropped}, "order", "order_broken"),
        ({f"pod:{MEASURED}": entries(environment="0" * 64)}, "measurement", "measurement_mismatch"),
        ({f"pod:{ANTI_DEBUG_READY}": dropped}, "order", "order_broken"),
        ({f"pod:{ANTI_DEBUG_READY}": without_seccomp}, "evidence", "log_contradicts"),
        ({f"runner:{ATTEST_RESULT}": entries(podHead="0" * 64)}, "order", "order_broken"),
        ({f"runner:{RELEASE_GRANTED}": entries(receiptSha256="0" * 64)}, "release", "release_other_result"),
        ({f"runner:{RELEASE_GRANTED}": dropped}, "parts", "receipt_mismatch"),
        ({f"runner:{ALLOCATION_GONE}": entries(count=1)}, "row", "row_mismatch"),
        ({f"runner:{ADAPTER_COLLECTED}": entries(status="wrong", code="adapter_malformed")}, "row", "row_mismatch"),
        ({f"runner:{ADAPTER_COLLECTED}": entries(sha256="f" * 64)}, "logs", "log_contradicts"),
        ({f"pod:{ADAPTER_SAVED}": entries(sha256="b" * 64)}, "run_receipt", "receipt_mismatch"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_an_inconsistency_is_refused_although_every_signature_is_valid(
    exported: dict[str, Any], edits: dict[str, Edit], proof: str, code: str
) -> None:
    failed = failures(verified(exported, **edits))
    assert failed.get(proof) == code, failed


def test_what_ran_is_unknown_where_only_the_artifact_names_it(exported: dict[str, Any]) -> None:
    """A lock of the forger's own, consistent everywhere: the bundle can be rebuilt around it, and proves nothing."""
    lock = exported["bundle"]["lock"] | {"torch": "0.0.1.evil"}
    bundle, digest = rebuilt(canonical(lock)), sha256_hex(canonical(lock))
    evil = exported | {"bundle": exported["bundle"] | {"lock": lock}}

    def measured(claims: Any) -> Any:
        changed = msgspec.structs.replace(claims.measurements, bundle=bundle, lock=digest)
        return msgspec.structs.replace(claims, measurements=changed)

    verification = verified(
        evil,
        claims=measured,
        challenge=struct(bundle=bundle),
        bundle_sha256=lambda _: bundle,
        **{
            f"runner:{PACKAGE_SEALED}": entries(bundleDigest=bundle),
            f"pod:{LAUNCH_ACCEPTED}": entries(bundleDigest=bundle),
            f"pod:{MEASURED}": entries(bundle=bundle, lock=digest),
        },
    )
    assert failures(verification) == {}
    assert (verification.genuine, verification.known) == (True, False)
    (unknown,) = [proof for proof in verification.proofs if proof.status == "unknown"]
    assert (unknown.name, unknown.code) == ("environment", "environment_unknown")
    assert digest in unknown.reason


def test_one_adapter_passed_off_as_two_is_refused(exported: dict[str, Any]) -> None:
    raw = exported["rawAdapterSha256"]
    sealed = {
        f"pod:{ADAPTER_SEALED}": entries(sha256=raw),
        "zeroization": struct(adapter_sha256=raw),
        f"runner:{ADAPTER_COLLECTED}": lambda body: body | {"sha256": raw},
        "row": entries(protectedAdapterSha256=raw),
    }
    assert failures(verified(exported, **sealed)) == {"row": "row_mismatch"}


def test_a_loss_that_is_not_finite_is_refused(exported: dict[str, Any]) -> None:
    def burst(series: dict[str, Series]) -> dict[str, Series]:
        return {
            kind: Series(losses=(*one.losses[:5], float("nan"), *one.losses[6:]), nanos=one.nanos)
            for kind, one in series.items()
        }

    verification = verified(exported, series=burst)
    assert failures(verification) == {"row": "row_mismatch", "training": "step_impossible"}
    reason = next(proof.reason for proof in verification.proofs if proof.name == "row")
    assert "checks" in reason


@pytest.mark.parametrize(
    "change",
    [
        {"gpuModel": "NVIDIA H100 80GB HBM3"}, {"overheadPct": -40.0}, {"tier": "snp"}, {"label": "another"},
        {"rawSteps": 1}, {"runtimeState": "unverified"}, {"model": "meta/llama"}, {"enforcement": None},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_summary_is_checked_in_all_that_needs_no_series(exported: dict[str, Any], change: dict[str, Any]) -> None:
    def shortened(document: dict[str, Any]) -> dict[str, Any]:
        document["bundle"] |= {"series": None, "leftOut": ["series"]}
        return document

    assert failures(verified(exported, finish=shortened)) == {}
    assert failures(verified(exported, finish=shortened, row=entries(**change))) == {"row": "row_mismatch"}
