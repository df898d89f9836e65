"""A finished pair: its row, its proofs, its adapters, and what is left behind."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sqlite3
import struct
from pathlib import Path

import pytest
from safetensors.numpy import load

from engine.attestation.receipts import check_delegation, read_release, read_run_receipt
from engine.attestation.wipe_proof import zeroization_faults
from engine.attestation.zeroization import read_zeroization
from engine.records.facts import gather
from engine.sealing.adapter import open_adapter
from engine.sealing.operator_keys import OperatorKeys
from engine.store.reader import Reader
from engine.store.views import RunView
from engine.wire import (
    ATTEST_CHALLENGE,
    ATTEST_RESULT,
    RELEASE_GRANTED,
    RELEASE_PLAN_COMPLETED,
    RUN_CLOSED,
    TRAIN_STARTED,
    ChainReader,
)
from tests.functional.runs.support import Operator

Finished = tuple[Operator, RunView]


def test_the_row_is_clean_and_says_why(finished: Finished) -> None:
    operator, view = finished
    row = view.row
    assert row is not None, operator.log_of(view.summary.id)
    failed = [check for check in row["checks"] if check["status"] != "passed"]
    assert failed == []
    assert row["clean"] is True
    assert (row["attestation"], row["runtimeState"], row["keyState"]) == ("verified", "zeroized", "destroyed")
    assert (row["tier"], row["earStatus"]) == ("software", "warning")
    assert row["sameAllocation"] is True
    assert row["cleanup"]["activeRunPodPodsAfterRun"] == 0


def test_both_segments_did_the_planned_work(finished: Finished) -> None:
    row = finished[1].row
    assert row is not None
    for kind in ("raw", "protected"):
        assert row[f"{kind}Steps"] == 60
        assert row[f"{kind}StopReason"] == "step_budget"
        assert row[f"{kind}ElapsedSec"] > 0
        assert math.isfinite(row[f"{kind}FinalLoss"])


def test_the_artifacts_differ_and_the_tensors_do_not(finished: Finished) -> None:
    row = finished[1].row
    assert row is not None
    assert row["rawAdapterSha256"] != row["protectedAdapterSha256"]
    assert row["rawTensorDigest"] == row["protectedTensorDigest"]


def test_losses_are_bitwise_equal_and_step_times_sum_to_the_elapsed_time(finished: Finished) -> None:
    operator, view = finished
    with Reader(operator.home) as reader:
        raw, protected = (reader.series(view.summary.id, kind) for kind in ("raw", "protected"))
    assert struct.pack("<60f", *raw.losses) == struct.pack("<60f", *protected.losses)
    assert view.row is not None
    assert sum(raw.nanos) / 1e9 == pytest.approx(view.row["rawElapsedSec"], abs=1e-5)


def test_the_overhead_is_the_published_formula(finished: Finished) -> None:
    row = finished[1].row
    assert row is not None
    rates = {kind: row[f"{kind}Steps"] / row[f"{kind}ElapsedSec"] for kind in ("raw", "protected")}
    assert row["overheadPct"] == pytest.approx((1 - rates["protected"] / rates["raw"]) * 100, abs=0.01)
    assert row["overheadCi95"] is None


def test_each_log_is_complete_and_records_the_other_logs_heads(finished: Finished) -> None:
    operator, view = finished
    run_id = view.summary.id
    with Reader(operator.home) as reader:
        logs = {chain: reader.events(run_id, chain) for chain in ("runner", "pod")}
    for log in logs.values():
        chain = ChainReader(run_id)
        for event in log:
            chain.check(event)
    runner = {event.event: event for event in logs["runner"]}
    pod_hashes = {event.hash: event for event in logs["pod"]}
    for name in (ATTEST_CHALLENGE, ATTEST_RESULT, RELEASE_GRANTED, RUN_CLOSED):
        assert runner[name].body["podHead"] in pod_hashes
    opened = next(event for event in logs["pod"] if event.event == RELEASE_PLAN_COMPLETED)
    assert opened.body["runnerHead"] == runner[RELEASE_GRANTED].hash
    started = [e for e in logs["pod"] if e.event == TRAIN_STARTED and e.body["segment"] == "protected"]
    assert opened.seq < started[0].seq
    assert runner[ATTEST_RESULT].seq < runner[RELEASE_GRANTED].seq


def test_every_receipt_verifies_from_the_operators_key_down(finished: Finished) -> None:
    operator, view = finished
    run_id = view.summary.id
    keys = OperatorKeys.load(operator.home / "keys")
    with Reader(operator.home) as reader:
        receipts, evidence = reader.receipts(run_id), reader.evidence(run_id)
        expected = gather(reader, run_id).expected_wipe()
    assert view.plan_digest is not None
    assert view.row is not None
    run_public = check_delegation(
        receipts["delegation"], keys.signing_public, run_id=run_id, plan_digest=view.plan_digest
    )
    release = read_release(receipts["release"], run_public, run_id=run_id)
    assert release.evidence_sha256 == hashlib.sha256(evidence["token"]["token"].encode()).hexdigest()
    signed = read_run_receipt(receipts["run"], run_public, run_id=run_id, row=view.row)
    assert signed.challenge == "a buyer's text"
    attester = base64.b64decode(evidence["launch"]["attesterKey"])
    proof = read_zeroization(
        receipts["zeroization"], (attester, run_public), run_id=run_id, manifest_sha256=release.manifest_sha256,
        nonce_sha256=json.loads(json.dumps(proof_nonce(operator, run_id))),
    )  # fmt: skip
    assert expected is not None
    assert zeroization_faults(proof, expected) == ()
    assert {process.role for process in proof.processes} == {"keyproc open", "keyproc seal", "trainer", "scanner"}


def proof_nonce(operator: Operator, run_id: str) -> str:
    """The digest of the nonce that the runner issued."""
    with Reader(operator.home) as reader:
        issued = next(e for e in reader.events(run_id, "runner") if e.event == ATTEST_CHALLENGE)
    return str(issued.body["nonceSha256"])


def test_the_sealed_adapter_opens_with_the_operators_key_and_holds_the_same_tensors(finished: Finished) -> None:
    operator, view = finished
    folder = operator.home / "adapters" / view.summary.id
    opened = bytes(open_adapter(folder / "protected.sealed", OperatorKeys.load(operator.home / "keys").recipient, None))
    raw = (folder / "raw.safetensors").read_bytes()
    protected_tensors, raw_tensors = load(opened), load(raw)
    assert sorted(protected_tensors) == sorted(raw_tensors)
    assert all((protected_tensors[name] == raw_tensors[name]).all() for name in raw_tensors)
    assert raw != opened


def test_nothing_of_the_run_is_left_behind(finished: Finished) -> None:
    operator, view = finished
    assert not (operator.home / "runs" / view.summary.id).exists()
    assert list((operator.home / "local").iterdir()) == []
    assert operator.processes(view.summary.id) == []


def test_no_private_key_is_in_the_database_or_the_logs(finished: Finished) -> None:
    operator, _ = finished
    keys = OperatorKeys.load(operator.home / "keys")
    secrets = [keys.signing.private_bytes_raw(), keys.recipient.private_bytes_raw()]
    needles = [needle for raw in secrets for needle in (raw, raw.hex().encode(), base64.b64encode(raw))]
    files = [*operator.home.glob("glasshouse.db*"), *(operator.home / "logs").iterdir()]
    assert files
    for file in files:
        content = file.read_bytes()
        assert not [needle for needle in needles if needle in content], file
        assert b"PRIVATE KEY" not in content


def test_the_home_is_private(finished: Finished) -> None:
    home = finished[0].home
    assert home.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in (home / "keys").iterdir())
    assert (home / "glasshouse.db").stat().st_mode & 0o777 == 0o600


def test_the_database_passes_the_integrity_check(finished: Finished) -> None:
    connection = sqlite3.connect(Path(finished[0].home) / "glasshouse.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
