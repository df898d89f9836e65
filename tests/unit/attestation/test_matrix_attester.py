"""Messages in the attester's inbox are refused unless the run's key signed them for this job and this evidence."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.attestation.challenge import Challenge, sign_challenge
from engine.attestation.measurement import EnvironmentMeasurement
from engine.attestation.receipts import release_receipt
from engine.errors import RefusedError
from engine.events import Machine
from engine.plan import dump_plan, plan_digest, preset
from engine.remote.bundle import build_bundle
from engine.wire import ATTEST_EVIDENCE, canonical, sha256_hex
from engine.worker.attester import Attestation
from engine.worker.children import Bundle
from engine.worker.context import Context
from engine.worker.event_log import EVENTS_FILE, EventLog
from engine.worker.isolation import memfd
from engine.worker.job import Job
from tests.vectors import honest
from tests.vectors.honest import RUN, digest, public, receiving, signing

CIPHERTEXT = b"a release" * 9


@pytest.fixture(scope="module")
def bundle_fd() -> Iterator[int]:
    fd = memfd.from_bytes("bundle", build_bundle())
    memfd.seal_code(fd)
    yield fd
    os.close(fd)


class Pod:
    """The attester of one job, and its inbox."""

    def __init__(self, folder: Path, bundle_fd: int) -> None:
        for name in ("inbox", "outbox", "scratch"):
            (folder / name).mkdir()
        self.folder = folder
        plan = preset("demo")
        self.job = Job(
            run_id=RUN,
            allocation_id="pod-1",
            plan=dump_plan(plan),
            plan_digest=plan_digest(plan),
            policy={},
            policy_digest=honest.challenge().policy_digest,
            manifest_digest=honest.challenge().manifest_digest,
            payload_files={},
            hub_weights={},
            hub_revision=None,
            model_type="qwen2",
            noise_seed=1,
            run_public_key=base64.b64encode(public(signing("run"))).decode(),
            recipient_public_key=honest.challenge().recipient_public,
            ssh_host_key_digest=digest("host key"),
        )
        identity = Machine(nonce="n", first_process_start=1, gpu_uuid=None, pod_id=None, cpu="x")
        context = Context(
            folder,
            self.job,
            Bundle(()),
            EventLog(folder, RUN),
            signing("attester"),
            identity,
            (bundle_fd, bundle_fd),
            {},
        )
        environment = EnvironmentMeasurement(digest=digest("environment"), files=1, bytes=1, links=0, skipped=0)
        cnf = base64.b64encode(public(receiving("cnf"))).decode()
        self.attestation = Attestation(context, environment, {}, cnf, lambda: None)

    def put(self, name: str, message: Any) -> None:
        (self.folder / "inbox" / name).write_bytes(canonical(message))

    def challenge(self, **changes: Any) -> Challenge:
        return honest.challenge(plan_digest=self.job.plan_digest, **changes)

    def answer(self) -> str:
        """Let the attester answer an honest challenge; returns the SHA-256 of its evidence."""
        self.put("challenge.json", sign_challenge(self.challenge(), signing("run")))
        self.attestation.answer_challenge()
        (token,) = [
            msgspec.json.decode(line)["body"]["token"]
            for line in (self.folder / EVENTS_FILE).read_bytes().splitlines()
            if ATTEST_EVIDENCE.encode() in line
        ]
        return sha256_hex(token.encode())

    def release(self, evidence: str, *, signer: str = "run", ciphertext: bytes = CIPHERTEXT, **changes: Any) -> None:
        honest_fields = {
            "evidence_sha256": evidence,
            "ciphertext_sha256": sha256_hex(CIPHERTEXT),
            "policy_sha256": self.job.policy_digest,
        }
        body = honest.release(**{**honest_fields, **changes})
        self.put(
            "release.json",
            {
                "ciphertext": base64.b64encode(ciphertext).decode(),
                "info": "",
                "runnerHead": "0" * 64,
                "receipt": release_receipt(body, signing(signer)),
            },
        )


@pytest.fixture
def pod(tmp_path: Path, bundle_fd: int, monkeypatch: pytest.MonkeyPatch) -> Pod:
    monkeypatch.setattr(sys, "argv", [f"/proc/self/fd/{bundle_fd}"])
    return Pod(tmp_path, bundle_fd)


def test_an_honest_challenge_is_answered_and_its_release_taken(pod: Pod) -> None:
    pod.release(pod.answer())
    assert base64.b64decode(pod.attestation.await_release()["ciphertext"]) == CIPHERTEXT


@pytest.mark.parametrize(
    ("change", "signer", "code"),
    [
        ({}, "stranger", "challenge_invalid"),
        ({"run_id": "run-2"}, "run", "run_mismatch"),
        ({"manifest_digest": digest("another")}, "run", "challenge_mismatch"),
        ({"policy_digest": digest("another")}, "run", "challenge_mismatch"),
        ({"recipient_public": base64.b64encode(bytes(range(32))).decode()}, "run", "challenge_mismatch"),
    ],
    ids=["by a stranger", "another run", "another package", "another policy", "another recipient"],
)
def test_a_challenge_that_is_not_for_this_job_gets_no_evidence(
    pod: Pod, change: dict[str, Any], signer: str, code: str
) -> None:
    pod.put("challenge.json", sign_challenge(pod.challenge(**change), signing(signer)))
    with pytest.raises(RefusedError) as caught:
        pod.attestation.answer_challenge()
    assert caught.value.code == code
    assert ATTEST_EVIDENCE.encode() not in (pod.folder / EVENTS_FILE).read_bytes()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"signer": "stranger"}, "envelope_signer_unknown"),
        ({"run_id": "run-2"}, "receipt_other_run"),
        ({"ciphertext": b"another release"}, "release_other_result"),
        ({"cnf_public": public(receiving("stranger")).hex()}, "release_other_result"),
        ({"policy_sha256": digest("another")}, "release_other_result"),
        ({"manifest_sha256": digest("another")}, "release_other_result"),
    ],
    ids=["by a stranger", "another run", "exchanged", "another key", "another policy", "another package"],
)
def test_a_release_that_was_tampered_with_is_not_opened(pod: Pod, change: dict[str, Any], code: str) -> None:
    pod.release(pod.answer(), **change)
    with pytest.raises(RefusedError) as caught:
        pod.attestation.await_release()
    assert caught.value.code == code


def test_a_release_that_was_placed_before_the_evidence_is_not_opened(pod: Pod) -> None:
    pod.release(digest("evidence"))
    pod.answer()
    with pytest.raises(RefusedError) as caught:
        pod.attestation.await_release()
    assert caught.value.code == "release_other_result"


@pytest.mark.parametrize("ciphertext", ["%%%", "AA=A", 7, None])
def test_a_release_that_is_not_base64_text_is_refused(pod: Pod, ciphertext: object) -> None:
    evidence = pod.answer()
    receipt = release_receipt(honest.release(evidence_sha256=evidence), signing("run"))
    pod.put("release.json", {"ciphertext": ciphertext, "info": "", "runnerHead": "0" * 64, "receipt": receipt})
    with pytest.raises(RefusedError) as caught:
        pod.attestation.await_release()
    assert caught.value.code == "release_other_result"


@pytest.mark.parametrize(
    ("codes", "code"),
    [(["debug_enabled"], "debug_enabled"), ("text", "release_denied"), (["Not A Code", 3], "release_denied")],
)
def test_a_denial_is_recognised_whatever_its_codes(pod: Pod, codes: object, code: str) -> None:
    pod.answer()
    pod.put("denied.json", {"codes": codes})
    with pytest.raises(RefusedError) as caught:
        pod.attestation.await_release()
    assert caught.value.code == code
