"""Proofs of signatures: every document is present, the keys are distinct, and the run's receipt matches the rest."""

from __future__ import annotations

from engine.attestation.reasons import refusal
from engine.attestation.receipts import (
    check_delegation,
    read_run_receipt,
)
from engine.attestation.signers import judge_signer
from engine.events import PackageSealed
from engine.records.proofs.case import Case, moment, require_equal
from engine.wire import ATTEST_CHALLENGE, ATTEST_EVIDENCE, ATTEST_RESULT, LAUNCH_ACCEPTED, RELEASE_GRANTED, digest_of


def parts(case: Case) -> str:
    """Each document is present exactly if the logs say that it was created."""
    bundle, facts = case.bundle, case.facts
    documents = {
        "challenge": (bundle.challenge, facts.has("runner", ATTEST_CHALLENGE)),
        "evidence": (bundle.evidence, facts.has("pod", ATTEST_EVIDENCE)),
        "result": (bundle.result, facts.has("runner", ATTEST_RESULT)),
        "policy": (bundle.policy, facts.has("runner", ATTEST_RESULT)),
        "lock": (bundle.lock, facts.has("runner", ATTEST_RESULT) and case.attested),
        "release": (bundle.receipts.release, facts.has("runner", RELEASE_GRANTED)),
    }
    # A runner that died after it had logged a challenge, and before it sent it, leaves no document.
    unsent = bundle.challenge is None and not facts.has("pod", ATTEST_CHALLENGE)
    if unsent:
        del documents["challenge"]
    wrong = [name for name, (document, is_logged) in documents.items() if (document is None) == is_logged]
    if wrong:
        raise refusal("receipt_mismatch", f"missing or not logged: {', '.join(wrong)}")
    return ", ".join(name for name, (document, _) in documents.items() if document is not None) or "none but the run's"


def signer(case: Case) -> str:
    """The operator's key is trusted by the verifier, and was not revoked."""
    anchors, issued = case.anchors, moment(case.delegation.issued)
    known = judge_signer(case.operator, issued, trusted=anchors.trusted, revocations=anchors.revocations)
    return f"{known.fingerprint}, {known.state}"


def delegation(case: Case) -> str:
    """The operator's delegation covers this key, run and plan, at the time of the signature."""
    # The receipt names the delegation by its digest, so it is later, whatever a clock showed that was set back.
    ended = max(moment(case.run_receipt.finished), moment(case.delegation.issued))
    plan = digest_of(case.bundle.plan)
    check_delegation(case.bundle.delegation, case.operator, run_id=case.run_id, plan_digest=plan, at=ended)
    return f"to this run's key until {case.delegation.expires}"


def keys_distinct(case: Case) -> str:
    """No key is used in two roles."""
    roles = {"operator": case.operator, "run": case.run_key}
    if case.facts.has("pod", LAUNCH_ACCEPTED):
        roles["attester"] = case.attester
    if case.attested:
        roles |= {"release": case.claims.cnf, "recipient": case.challenge.recipient_bytes}
    if len(set(roles.values())) != len(roles):
        raise refusal("keys_not_distinct", ", ".join(roles))
    return ", ".join(roles)


def run_receipt(case: Case) -> str:
    """The run's key signed this row, its plan, package, adapters, series and both logs."""
    body = read_run_receipt(case.bundle.receipts.run, case.run_key, run_id=case.run_id, row=case.row)
    sealed = case.facts.runner(PackageSealed)
    if not sealed:
        raise refusal("receipt_mismatch", "the package was never sealed")
    adapters = {one.kind: one.adapter_sha256 for one in case.facts.view.segments if one.adapter_sha256 is not None}
    require_equal(
        "receipt_mismatch",
        plan=(body.plan_digest, digest_of(case.bundle.plan)),
        rowPlan=(body.plan_digest, case.row["planDigest"]),
        loggedPlan=(body.plan_digest, sealed[0].body.plan_digest),
        package=(body.manifest_sha256, sealed[0].body.manifest_digest),
        bundle=(body.bundle_sha256, sealed[0].body.bundle_digest),
        adapters=(body.adapters, adapters),
        runnerHead=(body.runner_head, case.bundle.heads.runner),
        podHead=(body.pod_head, case.bundle.heads.pod),
        delegation=(body.delegation_sha256, digest_of(case.bundle.delegation)),
        challenge=(body.challenge, case.row["challenge"]),
    )
    return f"signed at {body.finished}"
