"""Each thing that must hold for an artifact to be what it says: signatures, bindings, order, and the row recomputed.

A proof returns what it saw, or raises a `RefusedError` whose code says what is wrong. It reads what other proofs check
as it stands, so that one fault does not hide another.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import Any, Final, TypeVar

import msgspec

from engine.attestation.challenge import Challenge, open_challenge
from engine.attestation.claims import Claims
from engine.attestation.evidence import parse_evidence
from engine.attestation.measurement import Measurements
from engine.attestation.policy import narrower_or_equal, policy_digest, policy_from
from engine.attestation.reasons import refusal
from engine.attestation.receipts import (
    Delegation,
    Release,
    RunReceipt,
    check_delegation,
    read_release,
    read_run_receipt,
)
from engine.attestation.signers import judge_signer
from engine.attestation.verifier import AttestationResult, Expectations, appraise, result_digest
from engine.attestation.zeroization import read_zeroization
from engine.errors import RefusedError, WireError
from engine.measure.stepchain import step_chain
from engine.records import rebuild
from engine.records.anchors import Anchors
from engine.records.artifact import Artifact, Bundle
from engine.records.facts import Facts
from engine.wire import (
    ADAPTER_SEALED,
    ALLOCATION_GONE,
    ANTI_DEBUG_READY,
    ATTEST_CHALLENGE,
    ATTEST_EVIDENCE,
    ATTEST_RESULT,
    LAUNCH_ACCEPTED,
    MEASURED,
    PACKAGE_SEALED,
    RELEASE_GRANTED,
    RELEASE_PLAN_COMPLETED,
    RUN_CLOSED,
    TRAIN_FINISHED,
    TRAIN_STARTED,
    ZEROIZE_DONE,
    ZEROIZE_STARTED,
    Event,
    canonical,
    digest_of,
    parse,
    sha256_hex,
)

PredicateT = TypeVar("PredicateT")
Proof = Callable[["Case"], str]

POD_ORDER: Final = (
    LAUNCH_ACCEPTED, ANTI_DEBUG_READY, MEASURED, ATTEST_CHALLENGE, ATTEST_EVIDENCE, RELEASE_PLAN_COMPLETED,
    TRAIN_STARTED, TRAIN_FINISHED, ADAPTER_SEALED, ZEROIZE_STARTED, ZEROIZE_DONE, RUN_CLOSED,
)  # fmt: skip
RUNNER_ORDER: Final = (
    PACKAGE_SEALED, ATTEST_CHALLENGE, ATTEST_RESULT, RELEASE_GRANTED, RUN_CLOSED, ALLOCATION_GONE,
)  # fmt: skip
_BY_SEGMENT: Final = {TRAIN_STARTED, TRAIN_FINISHED}


class NotApplicableError(Exception):
    """The run never came to what this proof is about."""


class NotCheckedError(Exception):
    """What this proof needs was left out of the artifact."""


class Case:
    """One artifact under proof. Properties read it without judging it, and raise `RefusedError` where they cannot."""

    def __init__(self, artifact: Artifact, bundle: Bundle, anchors: Anchors) -> None:
        self.row = artifact.row
        self.bundle = bundle
        self.anchors = anchors
        self._artifact = artifact

    @cached_property
    def facts(self) -> Facts:
        """The run's facts, from the artifact alone."""
        return rebuild.facts_of(self._artifact, self.bundle)

    @cached_property
    def made(self) -> dict[str, Any]:
        """The row as it follows from the facts."""
        return rebuild.row_of(self.facts, self.row)

    @property
    def run_id(self) -> str:
        return str(self.row["id"])

    @property
    def operator(self) -> bytes:
        """The operator's raw public signing key."""
        return bytes.fromhex(self.bundle.operator)

    @cached_property
    def delegation(self) -> Delegation:
        return _peek(self.bundle.delegation, Delegation)

    @property
    def run_key(self) -> bytes:
        """The run's raw public key, as the delegation names it."""
        try:
            return bytes.fromhex(self.delegation.run_public)
        except ValueError as error:
            raise refusal("predicate_malformed") from error

    @cached_property
    def run_receipt(self) -> RunReceipt:
        return _peek(self.bundle.receipts.run, RunReceipt)

    @property
    def launch(self) -> dict[str, Any]:
        """The body of `launch.accepted`."""
        found = self.facts.pod(LAUNCH_ACCEPTED)
        if not found:
            raise NotApplicableError
        return found[0].body

    @property
    def attester(self) -> bytes:
        """The attester's raw public key, as the launch announced it."""
        return base64.b64decode(str(self.launch.get("attesterKey", "")))

    @cached_property
    def claims(self) -> Claims:
        """What the evidence says, once its signature was checked."""
        if self.bundle.evidence is None:
            raise NotApplicableError
        return parse_evidence(self.bundle.evidence, self.attester)

    @cached_property
    def challenge(self) -> Challenge:
        if self.bundle.challenge is None:
            raise NotApplicableError
        return _peek_payload(self.bundle.challenge, Challenge)

    @cached_property
    def result(self) -> AttestationResult:
        if self.bundle.result is None:
            raise NotApplicableError
        try:
            return msgspec.convert(self.bundle.result, AttestationResult, strict=True)
        except msgspec.ValidationError as error:
            raise refusal("result_mismatch") from error

    @property
    def attested(self) -> bool:
        """Whether the evidence was accepted when it came; else nothing of it needs to hold."""
        return self.bundle.result is not None and self.result.accepted

    @cached_property
    def release(self) -> Release:
        if self.bundle.receipts.release is None:
            raise NotApplicableError
        return _peek(self.bundle.receipts.release, Release)

    def hashes(self, chain: str) -> dict[str, int]:
        """The place of each event of a log by its hash."""
        log = self.facts.runner_log if chain == "runner" else self.facts.pod_log
        return {event.hash: event.seq for event in log}


def _payload(envelope: dict[str, Any]) -> Any:
    try:
        return parse(base64.b64decode(str(envelope["payload"]), validate=True))
    except (KeyError, binascii.Error, ValueError, WireError) as error:
        raise refusal("envelope_malformed") from error


def _peek_payload(envelope: dict[str, Any], kind: type[PredicateT]) -> PredicateT:
    try:
        return msgspec.convert(_payload(envelope), kind, strict=True)
    except msgspec.ValidationError as error:
        raise refusal("predicate_malformed") from error


def _peek(envelope: dict[str, Any], kind: type[PredicateT]) -> PredicateT:
    """The predicate of an envelope whose signature another proof checks."""
    try:
        return msgspec.convert(_payload(envelope)["predicate"], kind, strict=True)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise refusal("predicate_malformed") from error


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise refusal("predicate_malformed") from error


def _equal(code: str, **pairs: tuple[object, object]) -> None:
    """Raise a refusal that names every pair whose halves differ."""
    unequal = [name for name, (first, second) in pairs.items() if first != second or type(first) is not type(second)]
    if unequal:
        raise refusal(code, ", ".join(unequal))


def parts(case: Case) -> str:
    """Each document is there exactly when the logs say that it was made."""
    bundle, facts = case.bundle, case.facts
    made = {
        "challenge": (bundle.challenge, facts.runner(ATTEST_CHALLENGE)),
        "evidence": (bundle.evidence, facts.pod(ATTEST_EVIDENCE)),
        "result": (bundle.result, facts.runner(ATTEST_RESULT)),
        "policy": (bundle.policy, facts.runner(ATTEST_RESULT)),
        "lock": (bundle.lock, facts.runner(ATTEST_RESULT)),
        "release": (bundle.receipts.release, facts.runner(RELEASE_GRANTED)),
    }
    wrong = [name for name, (document, events) in made.items() if (document is None) == bool(events)]
    if wrong:
        raise refusal("receipt_mismatch", f"missing or not logged: {', '.join(wrong)}")
    return ", ".join(name for name, (document, _) in made.items() if document is not None) or "none but the run's"


# Who signed


def signer(case: Case) -> str:
    """The operator's key is one that the verifier trusts, and was not revoked."""
    known = judge_signer(
        case.operator, _time(case.delegation.issued), trusted=case.anchors.trusted, revocations=case.anchors.revocations
    )
    return f"{known.fingerprint}, {known.state}"


def delegation(case: Case) -> str:
    """The operator let this key sign for this run and plan, when it did."""
    ended = _time(case.run_receipt.finished)
    plan = digest_of(case.bundle.plan)
    check_delegation(case.bundle.delegation, case.operator, run_id=case.run_id, plan_digest=plan, at=ended)
    return f"to this run's key until {case.delegation.expires}"


def keys_distinct(case: Case) -> str:
    """No key stands in two roles."""
    roles = {"operator": case.operator, "run": case.run_key}
    if case.facts.pod(LAUNCH_ACCEPTED):
        roles["attester"] = case.attester
    if case.attested:
        roles |= {"release": case.claims.cnf, "recipient": case.challenge.recipient_bytes}
    if len(set(roles.values())) != len(roles):
        raise refusal("keys_not_distinct", ", ".join(roles))
    return ", ".join(roles)


def run_receipt(case: Case) -> str:
    """The run's key signed this row, its plan, package, adapters, series and both logs."""
    body = read_run_receipt(case.bundle.receipts.run, case.run_key, run_id=case.run_id, row=case.row)
    sealed = case.facts.runner(PACKAGE_SEALED)
    if not sealed:
        raise refusal("receipt_mismatch", "the package was never sealed")
    adapters = {one.kind: one.adapter_sha256 for one in case.facts.view.segments if one.adapter_sha256 is not None}
    _equal(
        "receipt_mismatch",
        plan=(body.plan_digest, digest_of(case.bundle.plan)),
        rowPlan=(body.plan_digest, case.row["planDigest"]),
        package=(body.manifest_sha256, sealed[0].body.get("manifestDigest")),
        bundle=(body.bundle_sha256, sealed[0].body.get("bundleDigest")),
        adapters=(body.adapters, adapters),
        runnerHead=(body.runner_head, case.bundle.heads.runner),
        podHead=(body.pod_head, case.bundle.heads.pod),
        delegation=(body.delegation_sha256, digest_of(case.bundle.delegation)),
        challenge=(body.challenge, case.row["challenge"]),
    )
    return f"signed at {body.finished}"


# What was logged


def logs(case: Case) -> str:
    """Both chains hold from their first event to the heads that were signed."""
    facts, heads = case.facts, case.bundle.heads
    broken = [name for name, held in (("runner", facts.runner_whole), ("pod", facts.pod_whole)) if not held]
    ends = {"runner": facts.runner_log, "pod": facts.pod_log}
    broken += [name for name, log in ends.items() if name not in broken and _head(log) != getattr(heads, name)]
    if broken and not (broken == ["pod"] and not facts.pod_log):
        raise refusal("log_broken", " and ".join(broken))
    if facts.pod(RUN_CLOSED) and not facts.is_closed():
        raise refusal("log_broken", "the attester did not sign its end")
    withheld = sum(
        entry.body is msgspec.UNSET for log in (case.bundle.logs.runner, case.bundle.logs.pod) for entry in log
    )
    told = f", of which {withheld} are withheld" if withheld else ""
    return f"{len(facts.runner_log)} and {len(facts.pod_log)} events{told}"


def _head(log: list[Event]) -> str:
    return log[-1].hash if log else "0" * 64


def order(case: Case) -> str:
    """What had to come first came first, in both logs; between them the links say so, no clock."""
    if case.bundle.result is None:
        raise NotApplicableError
    pod = _places(case.facts.pod_log, POD_ORDER, ATTEST_EVIDENCE)
    runner = _places(case.facts.runner_log, RUNNER_ORDER, ATTEST_RESULT)
    runner_hashes, pod_hashes = case.hashes("runner"), case.hashes("pod")
    told = [
        _after(pod_hashes, runner, ATTEST_RESULT, "podHead", pod[ATTEST_EVIDENCE].seq),
        _after(runner_hashes, pod, ATTEST_CHALLENGE, "runnerHead", runner[ATTEST_CHALLENGE].seq),
    ]
    if RELEASE_GRANTED in runner and RELEASE_PLAN_COMPLETED in pod:
        told.append(_after(runner_hashes, pod, RELEASE_PLAN_COMPLETED, "runnerHead", runner[RELEASE_GRANTED].seq))
    if ADAPTER_SEALED in pod:
        told.append(_after(runner_hashes, pod, ADAPTER_SEALED, "runnerHead", runner[RELEASE_GRANTED].seq))
    if RUN_CLOSED in runner and RUN_CLOSED in pod:
        told.append(_after(pod_hashes, runner, RUN_CLOSED, "podHead", pod[RUN_CLOSED].seq))
    heads = case.claims.heads if case.attested else None
    if heads is not None and (heads.pod not in pod_hashes or heads.runner not in runner_hashes):
        raise refusal("order_broken", "the evidence names heads that the logs lack")
    return f"{len(told)} links between the logs"


def _places(log: list[Event], wanted: tuple[str, ...], known: str) -> dict[str, Event]:
    """The first event of each name, of the protected segment where two have it.

    Raises where they are out of order, or one up to `known` is missing.
    """
    found: dict[str, Event] = {}
    for event in log:
        mine = event.event not in _BY_SEGMENT or event.body.get("segment") == "protected"
        if event.event in wanted and mine:
            found.setdefault(event.event, event)
    places = [found[name].seq for name in wanted if name in found]
    if places != sorted(places):
        raise refusal("order_broken", "a log has its events in another order")
    absent = [name for name in wanted[: wanted.index(known) + 1] if name not in found]
    if absent:
        raise refusal("order_broken", f"{absent[0]} is missing")
    return found


def _after(hashes: dict[str, int], log: dict[str, Event], name: str, link: str, seq: int) -> str:
    """The other log's event that this one links to stands at `seq` or later."""
    event = log.get(name)
    if event is None or hashes.get(str(event.body.get(link)), -1) < seq:
        raise refusal("order_broken", f"{name} does not link behind what it follows")
    return name


# What was attested


def challenge(case: Case) -> str:
    """The run's key challenged the attester with a fresh nonce, about this plan, package and policy."""
    if case.anchors.challenge is not None and case.row["challenge"] != case.anchors.challenge:
        raise refusal("challenge_mismatch", "the row does not carry your text")
    if case.bundle.challenge is None:
        raise NotApplicableError
    signed = open_challenge(case.bundle.challenge, case.run_key, run_id=case.run_id)
    nonce = sha256_hex(signed.nonce_bytes)
    asked, answered = case.facts.runner(ATTEST_CHALLENGE), case.facts.pod(ATTEST_CHALLENGE)
    if not asked or not answered:
        raise refusal("challenge_mismatch", "a log lacks it")
    _equal(
        "challenge_mismatch",
        plan=(signed.plan_digest, digest_of(case.bundle.plan)),
        package=(signed.manifest_digest, case.run_receipt.manifest_sha256),
        policy=(signed.policy_digest, digest_of(case.bundle.policy)),
        text=(signed.challenge, case.row["challenge"]),
        bundle=(signed.bundle, case.run_receipt.bundle_sha256),
        runnerNonce=(asked[-1].body.get("nonceSha256"), nonce),
        podNonce=(answered[0].body.get("nonceSha256"), nonce),
        runnerHead=(signed.runner_head, asked[-1].hash),
        podHead=(answered[0].body.get("runnerHead"), signed.runner_head),
    )
    return "with the text of the request" if signed.challenge else "a fresh nonce, no text"


def evidence(case: Case) -> str:
    """The evidence answers the challenge and meets the policy, appraised anew by every rule."""
    told = case.result.reason_codes
    try:
        claims, token = case.claims, case.bundle.evidence or ""
    except RefusedError as error:
        if case.attested or error.code not in told:
            raise
        return f"refused when it came: {', '.join(told)}"
    logged = case.facts.pod(ATTEST_EVIDENCE)
    if [event.body.get("token") for event in logged] != [token]:
        raise refusal("evidence_malformed", "the log has other evidence")
    gpu = (case.launch.get("gpu") or {}).get("uuid")
    expected = Expectations(
        run_id=case.run_id,
        attester_public=case.attester,
        measurements=claims.measurements,  # compared with references by another proof
        plan_digest=digest_of(case.bundle.plan),
        manifest_digest=case.run_receipt.manifest_sha256 or "",
        challenge=case.row["challenge"],
        pod_id=claims.pod_id,  # the operator's to know, and compared when the evidence came
        ssh_host_key=claims.ssh_host_key,
        runner_head=case.challenge.runner_head,
        gpu_uuid=gpu,
        nonce=case.challenge.nonce_bytes,
    )
    policy = policy_from(case.bundle.policy)
    found = appraise(token, expected=expected, policy=policy, nonces=None, now=_time(case.result.issued).timestamp())
    anew = found.reason_codes
    # What only the runner could see (freshness, the allocation, references) may have failed besides.
    if not set(anew) <= set(told) or (case.result.accepted and not found.accepted):
        raise RefusedError(f"The evidence does not hold: {', '.join(anew)}.", "Do not trust this row.", code=anew[0])
    if not case.attested:
        return f"refused when it came: {', '.join(told)}"
    return f"{len(found.checks)} rules, EAR {case.result.status}, tier {case.result.tier}"


def result(case: Case) -> str:
    """The stored result is the one that was logged, and is about this evidence, package and policy."""
    found, logged = case.result, case.facts.runner(ATTEST_RESULT)
    if len(logged) != 1:
        raise refusal("result_mismatch", "the log has not exactly one")
    cnf = case.claims.cnf.hex() if found.accepted else None
    _equal(
        "result_mismatch",
        run=(found.run_id, case.run_id),
        digest=(logged[0].body.get("resultSha256"), result_digest(found)),
        status=(logged[0].body.get("status"), found.status),
        codes=(logged[0].body.get("codes"), list(found.reason_codes)),
        evidence=(found.evidence_sha256, sha256_hex((case.bundle.evidence or "").encode())),
        policy=(found.policy_sha256, digest_of(case.bundle.policy)),
        package=(found.manifest_sha256, case.run_receipt.manifest_sha256),
        key=(found.cnf, cnf),
        document=(result_digest(found), digest_of(case.bundle.result)),
    )
    return f"logged before the release, EAR {found.status}"


def policy(case: Case) -> str:
    """The policy asks for no less than the built-in one, or than one that the verifier brought."""
    if case.bundle.policy is None:
        raise NotApplicableError
    found = policy_from(case.bundle.policy)
    if policy_digest(found) != digest_of(case.bundle.policy):
        raise refusal("policy_invalid")
    if not any(narrower_or_equal(found, base) for base in case.anchors.policies):
        raise refusal("policy_loosened", found.id)
    return f"{found.id}, version {found.version}"


def measurement(case: Case) -> str:
    """The code that ran is what this installation builds, or a reference that the verifier brought."""
    launched = str(case.launch.get("bundleDigest"))
    _equal("receipt_mismatch", bundle=(launched, case.run_receipt.bundle_sha256))
    if case.bundle.lock is None or not case.attested:
        raise NotApplicableError
    seen: Measurements = case.claims.measurements
    _equal(
        "measurement_mismatch",
        launched=(seen.bundle, launched),
        lock=(seen.lock, sha256_hex(canonical(case.bundle.lock))),
    )
    told = [event.body for event in case.facts.pod(MEASURED)]
    if [{name: body.get(name) for name in ("bundle", "lock", "environment")} for body in told] != [
        msgspec.to_builtins(seen)
    ]:
        raise refusal("measurement_mismatch", "the log has another")
    if not case.anchors.knows_bundle(seen.bundle, case.bundle.lock):
        raise refusal("measurement_unknown", seen.bundle)
    if case.anchors.environments and seen.environment not in case.anchors.environments:
        raise refusal("measurement_unknown", f"environment {seen.environment}")
    known = "a reference" if case.anchors.environments else "the operator's own reference only"
    return f"bundle {seen.bundle[:16]}…; the environment was compared with {known}"


def release(case: Case) -> str:
    """The keys went once, to the attested key, on the accepted result, after a receipt of it was signed."""
    granted = case.facts.runner(RELEASE_GRANTED)
    if case.bundle.receipts.release is None:
        raise NotApplicableError
    body = read_release(case.bundle.receipts.release, case.run_key, run_id=case.run_id)
    if len(granted) != 1 or not case.result.accepted:
        raise refusal("release_before_result")
    opened, package = case.facts.pod(RELEASE_PLAN_COMPLETED), body.manifest_sha256
    before = case.facts.runner_log[granted[0].seq - 1].hash
    _equal(
        "release_other_result",
        receipt=(granted[0].body.get("receiptSha256"), digest_of(case.bundle.receipts.release)),
        result=((body.result_id, body.result_sha256), (case.result.result_id, result_digest(case.result))),
        evidence=(body.evidence_sha256, case.result.evidence_sha256),
        policy=(body.policy_sha256, case.result.policy_sha256),
        package=(package, case.run_receipt.manifest_sha256),
        key=(body.cnf_public, case.claims.cnf.hex()),
        runnerHead=(body.runner_head, before),
        podHead=(body.pod_head, granted[0].body.get("podHead")),
        opened=(
            [event.body.get("manifestSha256") for event in opened] or [body.manifest_sha256],
            [body.manifest_sha256],
        ),
    )
    return f"once, at {body.released}"


def zeroization(case: Case) -> str:
    """The wipe's receipt is the attester's, countersigned by the run's key; what it proves is a check of the row."""
    done = case.facts.pod(ZEROIZE_DONE)
    receipt = case.bundle.receipts.zeroization
    if receipt is None:
        if not case.facts.runner(RELEASE_GRANTED) or case.facts.view.summary.runtime_state == "unverified":
            raise NotApplicableError
        raise refusal("receipt_mismatch", "the wipe has no receipt")
    found = read_zeroization(
        receipt,
        (case.attester, case.run_key),
        run_id=case.run_id,
        manifest_sha256=case.run_receipt.manifest_sha256 or "",
        nonce_sha256=sha256_hex(case.challenge.nonce_bytes),
    )
    logged = (done[0].body.get("receipt") or {}).get("payload") if len(done) == 1 else None
    places = case.hashes("pod")
    if found.pod_head not in places or not done or places[found.pod_head] >= done[0].seq:
        raise refusal("receipt_mismatch", "it does not link to the log before it")
    _equal(
        "receipt_mismatch",
        logged=(logged, receipt.get("payload")),
        adapter=(found.adapter_sha256, case.row["protectedAdapterSha256"]),
    )
    before = sum(sum(scan.hits.values()) for scan in found.before.values())
    after = sum(sum(scan.hits.values()) for scan in found.after.values())
    return f"{before} hits before the wipe, {after} after it"


# What was computed


def series(case: Case) -> str:
    """The steps are those that were signed and, in the protected segment, chained while they were trained."""
    if case.bundle.series is None:
        if not case.bundle.left_out:
            raise refusal("series_mismatch", "it was left out unsaid")
        raise NotCheckedError
    if case.bundle.left_out or set(case.bundle.series) != set(case.facts.plan.kinds()):
        raise refusal("series_mismatch", "it has other segments than the plan")
    chains = {kind: step_chain(one.losses, one.nanos) for kind, one in case.facts.series.items()}
    if chains != case.run_receipt.series:
        raise refusal("series_mismatch", "it is not the one that was signed")
    finished = case.facts.pod(TRAIN_FINISHED, "protected")
    if finished and finished[-1].body.get("stepChain") != chains.get("protected"):
        raise refusal("series_mismatch", "it is not the one that was chained while training")
    return " and ".join(f"{len(one.losses)} {kind} steps" for kind, one in case.facts.series.items())


def row(case: Case) -> str:
    """Every figure, state and verdict of the row follows from the logs, the receipts and the series."""
    if case.bundle.series is None:
        raise NotCheckedError
    unequal = rebuild.differences(case.made, case.row)
    if unequal:
        raise refusal("row_mismatch", ", ".join(unequal))
    return f"{len(case.row) - len(rebuild.STATED)} fields recomputed"


PROOFS: Final[dict[str, Proof]] = {
    "parts": parts,
    "signer": signer,
    "delegation": delegation,
    "keys_distinct": keys_distinct,
    "run_receipt": run_receipt,
    "logs": logs,
    "challenge": challenge,
    "evidence": evidence,
    "result": result,
    "policy": policy,
    "measurement": measurement,
    "release": release,
    "order": order,
    "zeroization": zeroization,
    "series": series,
    "row": row,
}
