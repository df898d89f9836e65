"""Attacks on a running system: each is refused with its own code, and the row is not clean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.attestation.nonce import NonceLedger
from engine.runner.environment_local import CACHE, environment_reference
from engine.store.reader import Reader
from engine.store.views import RunView
from engine.wire import RELEASE_DENIED, RELEASE_GRANTED
from tests.functional.runs.support import LONG, Operator, checks_of, segment_state, short_plan


def _assert_not_released(operator: Operator, view: RunView, code: str) -> None:
    assert view.row is not None
    assert view.row["clean"] is False
    assert view.row["state"] == "failed"
    assert view.row["attestation"] == "rejected"
    assert view.row["reasonCodes"] == [code]
    assert view.row["keyState"] == "withheld"
    assert view.row["protectedAdapterSha256"] is None
    with Reader(operator.home) as reader:
        names = [event.event for event in reader.events(view.summary.id, "runner")]
    assert RELEASE_DENIED in names
    assert RELEASE_GRANTED not in names
    assert operator.processes(view.summary.id) == []


def test_a_measurement_other_than_the_reference_is_refused(operator: Operator, small_site: Path) -> None:
    environment_reference(operator.home, (str(small_site),))
    kept = json.loads((operator.home / CACHE).read_text())
    kept["digest"] = "0" * 64
    (operator.home / CACHE).write_text(json.dumps(kept))
    view = operator.finish(operator.start(short_plan("protected", steps=5)))
    (operator.home / CACHE).unlink()
    _assert_not_released(operator, view, "environment_mismatch")


def test_a_nonce_that_was_used_before_is_refused(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = short_plan("protected", steps=5)
    run_id: str = operator.hold_at("evidence:challenge", monkeypatch, lambda: operator.start(plan))
    with operator.held(run_id):
        ledger = NonceLedger(operator.home / "runs" / run_id / "nonces.json")
        nonce = ledger.outstanding(run_id)
        assert nonce is not None
        ledger.redeem(nonce, run_id)
    _assert_not_released(operator, operator.finish(run_id), "nonce_replayed")


def test_a_run_that_failed_before_its_challenge_was_taken_is_genuine(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = short_plan("protected", steps=5)
    run_id: str = operator.hold_at("evidence:challenge", monkeypatch, lambda: operator.start(plan))
    with operator.held(run_id):
        for process in operator.processes(run_id, "supervisor"):
            process.kill()
    view = operator.finish(run_id)
    assert view.row is not None
    assert (view.row["state"], view.row["keyState"]) == ("failed", "withheld")
    proofs = {proof.name: proof for proof in operator.verified(run_id).proofs}
    assert (proofs["challenge"].status, proofs["challenge"].reason) == (
        "passed",
        "sent, and never taken by the attester",
    )
    assert [proof.name for proof in proofs.values() if proof.status == "failed"] == []


def test_a_package_changed_on_the_allocation_is_refused_and_the_raw_segment_is_kept(operator: Operator) -> None:
    run_id = operator.start(short_plan(target=LONG))
    operator.wait(run_id, lambda view: segment_state(view, "raw") == "training")
    sealed = operator.remote_folder(run_id) / "package" / "weights.safetensors.sealed"
    content = bytearray(sealed.read_bytes())
    content[len(content) // 2] ^= 1
    sealed.write_bytes(content)
    operator.hurry(run_id)
    view = operator.finish(run_id)
    assert view.row is not None
    assert view.row["state"] == "failed"
    assert "payload_tampered" in view.row["reason"]
    assert view.row["clean"] is False
    assert view.row["runtimeState"] == "unverified"
    assert checks_of(view)["raw_completed"] == "passed"
    assert checks_of(view)["zeroization_proven"] == "failed"
    assert view.row["rawSteps"] == LONG.steps
    assert view.row["protectedAdapterSha256"] is None


def test_a_manifest_exchanged_on_the_allocation_is_refused(operator: Operator) -> None:
    run_id = operator.start(short_plan(target=LONG))
    operator.wait(run_id, lambda view: segment_state(view, "raw") == "training")
    path = operator.remote_folder(run_id) / "package" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"size":564', b'"size":565') + b"")
    manifest = json.loads(path.read_bytes())
    manifest["package_id"] = "0" * 32
    path.write_text(json.dumps(manifest, separators=(",", ":"), sort_keys=True))
    operator.hurry(run_id)
    view = operator.finish(run_id)
    assert view.row is not None
    assert "manifest_mismatch" in view.row["reason"]
    assert view.row["clean"] is False
    assert view.row["keyState"] == "withheld"


def test_a_payload_changed_in_the_clear_is_not_trained_on(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = short_plan("raw", steps=5)
    run_id: str = operator.hold_at("call:engine.runner.staging:launch", monkeypatch, lambda: operator.start(plan))
    with operator.held(run_id):
        target = operator.remote_folder(run_id) / "raw" / "tokens.safetensors"
        content = bytearray(target.read_bytes())
        content[-1] ^= 1
        target.write_bytes(content)
    view = operator.finish(run_id)
    assert view.row is not None
    assert view.row["state"] == "failed"
    assert "payload_changed" in view.row["reason"]
