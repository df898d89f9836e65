"""Proofs of attestation, release and wipe: each document is appraised again, and bound to the others."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

from engine.attestation.challenge import open_challenge
from engine.attestation.ear import parse_result, result_digest
from engine.attestation.enforcement import BUNDLE, combined
from engine.attestation.measurement import Measurements
from engine.attestation.policy import narrower_or_equal, policy_digest, policy_from
from engine.attestation.reasons import REASONS, refusal
from engine.attestation.receipts import (
    read_release,
)
from engine.attestation.verifier import Expectations, appraise
from engine.attestation.wipe_proof import contradictions
from engine.attestation.zeroization import read_zeroization
from engine.errors import RefusedError
from engine.events import (
    AntiDebugReady,
    ChallengeSent,
    ChallengeTaken,
    EvidenceSent,
    Measured,
    PackageOpened,
    ReleaseGranted,
    ResultReached,
    ZeroizeDone,
)
from engine.records.facts import CLOCK_SLACK
from engine.records.proofs.case import Case, NotApplicableError, UnknownError, moment, require_equal
from engine.sealing.pem import key_id
from engine.wire import RELEASE_GRANTED, canonical, digest_of, sha256_hex

_COVERED: Final = {
    "release": "as the signed reference values of release {title} list it",
    "given": "as a reference that you gave lists it; it is unsigned, so you alone vouch for it",
    "here": "as this home measured it on this machine; somebody else needs a reference to know it",
    "there": "as your runner had it measured on the allocation before the run: unchanged since, vouched for by nobody",
}


def challenge(case: Case) -> str:
    """The run's key challenged the attester with a fresh nonce, for this plan, package and policy."""
    if case.anchors.challenge is not None and case.row["challenge"] != case.anchors.challenge:
        raise refusal("challenge_mismatch", "the row does not carry your text")
    if case.bundle.challenge is None:
        raise NotApplicableError
    signed = open_challenge(case.bundle.challenge, case.run_key, run_id=case.run_id)
    nonce = sha256_hex(signed.nonce_bytes)
    sent, answered = case.facts.runner(ChallengeSent), case.facts.pod(ChallengeTaken)
    logged = [one for one in sent if one.body.nonce_sha256 == nonce]
    if len(logged) != 1:
        raise refusal("challenge_mismatch", "the runner's log lacks it")
    require_equal(
        "challenge_mismatch",
        plan=(signed.plan_digest, digest_of(case.bundle.plan)),
        package=(signed.manifest_digest, case.run_receipt.manifest_sha256),
        text=(signed.challenge, case.row["challenge"]),
        bundle=(signed.bundle, case.run_receipt.bundle_sha256),
        runnerHead=(signed.runner_head, logged[0].hash),
    )
    if case.bundle.policy is not None:  # it is published with the result
        require_equal("challenge_mismatch", policy=(signed.policy_digest, digest_of(case.bundle.policy)))
    if not answered:
        # The run ended, or its allocation died, before the attester took the challenge.
        if case.bundle.evidence is not None:
            raise refusal("challenge_mismatch", "the allocation's log lacks it")
        return "sent, and never taken by the attester"
    require_equal(
        "challenge_mismatch",
        podNonce=(answered[0].body.nonce_sha256, nonce),
        podHead=(answered[0].body.runner_head, signed.runner_head),
    )
    return "with the text of the request" if signed.challenge else "a fresh nonce, no text"


def evidence(case: Case) -> str:
    """The evidence answers the challenge and meets the policy; it is appraised again by every rule."""
    stored_codes = case.result.reason_codes
    try:
        claims, token = case.claims, case.bundle.evidence or ""
    except RefusedError as error:
        if case.attested or error.code not in stored_codes:
            raise
        require_equal(
            "result_mismatch", status=(case.result.status, "contraindicated"), tier=(case.result.tier, "unknown")
        )
        return f"refused when it came: {', '.join(stored_codes)}"
    logged = case.facts.pod(EvidenceSent)
    if [event.body.token for event in logged] != [token]:
        raise refusal("evidence_malformed", "the log has other evidence")
    gpu = case.launch.gpu
    expected = Expectations(
        run_id=case.run_id,
        attester_public=case.attester,
        measurements=claims.measurements,  # compared with references by another proof
        plan_digest=digest_of(case.bundle.plan),
        manifest_digest=case.run_receipt.manifest_sha256 or "",
        challenge=case.row["challenge"],
        pod_id=claims.pod_id,  # known to the operator alone, and compared by the runner
        ssh_host_key=claims.ssh_host_key,
        runner_head=case.challenge.runner_head,
        gpu_uuid=None if gpu is None else gpu.uuid,
        nonce=case.challenge.nonce_bytes,
    )
    policy = policy_from(case.bundle.policy)
    appraisal = appraise(token, expected=expected, policy=policy, nonces=None, now=case.result.issued)
    codes, stored = appraisal.reason_codes, case.result
    # What only the runner could check (freshness, the allocation, references) may have failed in addition.
    if not set(codes) <= set(stored_codes) or (case.result.accepted and not appraisal.accepted):
        raise RefusedError(f"The evidence does not hold: {', '.join(codes)}.", "Do not trust this row.", code=codes[0])
    if not case.attested:
        require_equal("result_mismatch", status=(stored.status, "contraindicated"), tier=(stored.tier, claims.tier))
        return f"refused when it came: {', '.join(stored_codes)}"
    _check_reports(case)
    require_equal(
        "result_mismatch",
        status=(stored.status, appraisal.status),
        tier=(stored.tier, appraisal.tier),
        trustVector=(stored.trust_vector, appraisal.trust_vector),
        policyId=(stored.policy_id, appraisal.policy_id),
        checks=(stored.checks, appraisal.checks),
    )
    return f"{len(appraisal.checks)} rules, EAR {case.result.status}, tier {case.result.tier}"


def _check_reports(case: Case) -> None:
    """The controls in the evidence are those that the processes reported."""
    logged = case.facts.pod(AntiDebugReady)
    reports = msgspec.to_builtins(logged[0].body.enforcement) if logged else {}
    reported = combined(reports, bundle_sealed=True)
    stated = case.claims.enforcement
    if {name: control for name, control in reported.items() if name != BUNDLE} != {
        name: control for name, control in stated.items() if name != BUNDLE
    }:
        raise refusal("log_contradicts", "the controls")


def result(case: Case) -> str:
    """The stored result is signed by the run's key, was logged, and is about this evidence, package and policy."""
    if case.bundle.result is None:
        raise NotApplicableError
    stored, logged = parse_result(case.bundle.result, case.run_key), case.facts.runner(ResultReached)
    if len(logged) != 1:
        raise refusal("result_mismatch", "the log has not exactly one")
    cnf = case.claims.cnf.hex() if stored.accepted else None
    require_equal(
        "result_mismatch",
        run=(stored.run_id, case.run_id),
        verifier=(stored.verifier_build, f"glasshouse {case.row['version']}"),
        digest=(logged[0].body.result_sha256, result_digest(case.bundle.result)),
        status=(logged[0].body.status, stored.status),
        codes=(logged[0].body.codes, list(stored.reason_codes)),
        evidence=(stored.evidence_sha256, sha256_hex((case.bundle.evidence or "").encode())),
        policy=(stored.policy_sha256, digest_of(case.bundle.policy)),
        package=(stored.manifest_sha256, case.run_receipt.manifest_sha256),
        key=(stored.cnf, cnf),
        policyId=(stored.policy_id, policy_from(case.bundle.policy).id),
        nonce=(stored.nonce, case.claims.eat_nonce if case.attested else stored.nonce),
    )
    return f"logged before the release, EAR {stored.status}"


def policy(case: Case) -> str:
    """The policy is at least as strict as the built-in one, or as one of the verifier's."""
    if case.bundle.policy is None:
        raise NotApplicableError
    used = policy_from(case.bundle.policy)
    if policy_digest(used) != digest_of(case.bundle.policy):
        raise refusal("policy_invalid")
    if not any(narrower_or_equal(used, base) for base in case.anchors.policies):
        raise refusal("policy_loosened", used.id)
    return f"{used.id}, version {used.version}"


def measurement(case: Case) -> str:
    """The code that ran is what this installation builds, or is among the verifier's reference values."""
    launched = case.launch.bundle_digest
    require_equal("receipt_mismatch", bundle=(launched, case.run_receipt.bundle_sha256))
    if case.bundle.lock is None or not case.attested:
        raise NotApplicableError
    measured: Measurements = case.claims.measurements
    require_equal(
        "measurement_mismatch",
        launched=(measured.bundle, launched),
        lock=(measured.lock, sha256_hex(canonical(case.bundle.lock))),
    )
    logged = [one.body for one in case.facts.pod(Measured)]
    if [Measurements(bundle=one.bundle, lock=one.lock, environment=one.environment) for one in logged] != [measured]:
        raise refusal("measurement_mismatch", "the log has another")
    if not case.anchors.knows_bundle(measured.bundle, case.bundle.lock):
        raise refusal("measurement_unknown", measured.bundle)
    demanded = case.anchors.demanded_environments()
    if demanded and measured.environment not in demanded:
        raise refusal("measurement_unknown", f"environment {measured.environment}")
    return f"bundle {measured.bundle[:16]}…"


def environment(case: Case) -> str:
    """Lock and environment are among the reference values that the verifier knows; the artifact cannot supply them."""
    if case.bundle.lock is None or not case.attested:
        raise NotApplicableError
    measured: Measurements = case.claims.measurements
    lock, installed = case.anchors.covering(measured, by_home=_is_signed_here(case))
    if lock is None or installed is None:
        uncovered = [f"lock {measured.lock}"] if lock is None else []
        uncovered += [f"environment {measured.environment}"] if installed is None else []
        sentence, hint = REASONS["environment_unknown"]
        reason = f"{sentence[:-1]}: {' and '.join(uncovered)}."
        raise UnknownError(reason, hint, code="environment_unknown")
    return _COVERED[installed.origin].format(title=installed.title)


def _is_signed_here(case: Case) -> bool:
    key = case.anchors.trusted.find(case.operator)
    return key is not None and key.home


def release(case: Case) -> str:
    """The keys were released once, to the attested key, for the accepted result, after a receipt was signed."""
    granted = case.facts.runner(ReleaseGranted)
    if case.bundle.receipts.release is None:
        raise NotApplicableError
    body = read_release(case.bundle.receipts.release, case.run_key, run_id=case.run_id)
    if len(granted) != 1 or not case.result.accepted:
        raise refusal("release_before_result")
    decided = datetime.fromtimestamp(case.result.issued, UTC)
    # Neighbours in the runner's log: a wall clock that is set later in the run makes no release untrue.
    released, logged = moment(body.released), moment(case.facts.runner_log[granted[0].seq].ts)
    if not decided - CLOCK_SLACK <= released <= logged + CLOCK_SLACK:
        raise refusal("release_other_result", "released")
    opened, package = case.facts.pod(PackageOpened), body.manifest_sha256
    before = case.facts.runner_log[granted[0].seq - 1].hash
    require_equal(
        "release_other_result",
        receipt=(granted[0].body.receipt_sha256, digest_of(case.bundle.receipts.release)),
        result=((body.result_id, body.result_sha256), (case.result.result_id, result_digest(case.bundle.result or ""))),
        evidence=(body.evidence_sha256, case.result.evidence_sha256),
        policy=(body.policy_sha256, case.result.policy_sha256),
        package=(package, case.run_receipt.manifest_sha256),
        key=(body.cnf_public, case.claims.cnf.hex()),
        runnerHead=(body.runner_head, before),
        podHead=(body.pod_head, granted[0].body.pod_head),
        opened=(
            [event.body.manifest_sha256 for event in opened] or [body.manifest_sha256],
            [body.manifest_sha256],
        ),
        ciphertext=(
            [event.body.ciphertext_sha256 for event in opened] or [body.ciphertext_sha256],
            [body.ciphertext_sha256],
        ),
    )
    # The ciphertext is not published: whoever breaks or kept the attested key would read the content keys out of it.
    both = (
        "as both sides signed its digest" if opened else "its digest stated by the runner alone, as it was not opened"
    )
    return f"once, at {body.released}, {both}"


def zeroization(case: Case) -> str:
    """The wipe's receipt is signed by the attester and the run's key; a check of the row states what it proves."""
    done = case.facts.pod(ZeroizeDone)
    receipt = case.bundle.receipts.zeroization
    if receipt is None:
        if not case.facts.has("runner", RELEASE_GRANTED) or case.facts.view.summary.runtime_state == "unverified":
            raise NotApplicableError
        raise refusal("receipt_mismatch", "the wipe has no receipt")
    wipe = read_zeroization(
        receipt,
        (case.attester, case.run_key),
        run_id=case.run_id,
        manifest_sha256=case.run_receipt.manifest_sha256 or "",
        nonce_sha256=sha256_hex(case.challenge.nonce_bytes),
    )
    signers = [signature["keyid"] for signature in receipt["signatures"]]
    logged = done[0].body.receipt.payload if len(done) == 1 else None
    expected = case.facts.expected_wipe()
    if expected is None:
        raise refusal("receipt_mismatch", "the log has not exactly one")
    if found := contradictions(wipe, expected):  # no honest runner countersigns it
        raise refusal(found[0], ", ".join(found[1:]))
    require_equal(
        "receipt_mismatch",
        logged=(logged, receipt.get("payload")),
        signers=(signers, [key_id(case.attester), key_id(case.run_key)]),
        adapter=(wipe.adapter_sha256, case.row["protectedAdapterSha256"]),
    )
    before = sum(sum(scan.hits.values()) for scan in wipe.before.values())
    after = sum(sum(scan.hits.values()) for scan in wipe.after.values())
    return f"{before} hits before the wipe, {after} after it"
