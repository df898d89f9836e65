"""Receipts: signed statements that something happened. The fields of each predicate's struct are what it states.

Signers: the operator's key signs the delegation; the run's key the release and the whole run; the attester's ephemeral
key the end of its log and the zeroization, which the runner checks and countersigns with the run's key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from engine.attestation.dsse import countersign
from engine.attestation.reasons import refusal
from engine.attestation.statements import RunId, Time, open_statement, read_predicate, sign, statement, verify
from engine.events import Digest, Segment
from engine.sealing.pem import key_id
from engine.system.clock import utc
from engine.wire import digest_of, utc_now, utc_text

__all__ = [
    "CLOSING",
    "DELEGATION",
    "RELEASE",
    "RUN",
    "ZEROIZATION",
    "Closing",
    "Delegation",
    "Release",
    "RunReceipt",
    "check_delegation",
    "closing_receipt",
    "countersign",
    "delegate",
    "open_statement",
    "read_closing",
    "read_predicate",
    "read_release",
    "read_run_receipt",
    "release_receipt",
    "run_receipt",
    "run_subjects",
    "sign",
    "statement",
    "verify",
]

_PREFIX: Final = "urn:glasshouse:predicate"
DELEGATION: Final = f"{_PREFIX}:delegation:1"
RELEASE: Final = f"{_PREFIX}:release:1"
ZEROIZATION: Final = f"{_PREFIX}:zeroization:1"
RUN: Final = f"{_PREFIX}:run:1"
CLOSING: Final = f"{_PREFIX}:closing:1"

ResultId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$(?!\n)")]


class Delegation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The operator lets `run_public` (raw, hex) sign for one run of one plan until `expires`.

    Times are UTC.
    """

    run_id: RunId
    plan_digest: Digest
    run_public: Digest
    issued: Time
    expires: Time


class Release(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The package's keys were released to `cnf_public` (raw, hex) on one appraisal result, and on that one only.

    `ciphertext_sha256` is the digest of the bytes that are sent, and sent again after a reconnect. Heads are those of
    the two logs when the release was decided.
    """

    run_id: RunId
    result_id: ResultId
    result_sha256: Digest
    evidence_sha256: Digest
    policy_sha256: Digest
    manifest_sha256: Digest
    cnf_public: Digest
    ciphertext_sha256: Digest
    runner_head: Digest
    pod_head: Digest
    released: Time


class Closing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The end of the attester's log, at `pod_head`. `runner_head` is the last head of the runner's log that it
    received, or None.
    """

    run_id: RunId
    pod_head: Digest
    runner_head: Digest | None
    closed: Time


class RunReceipt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run ended with this row. Digests by name: adapters and step series by segment."""

    run_id: RunId
    row_sha256: Digest
    plan_digest: Digest
    manifest_sha256: Digest | None
    adapters: dict[Segment, Digest]
    series: dict[Segment, Digest]
    runner_head: Digest
    pod_head: Digest
    delegation_sha256: Digest
    bundle_sha256: Digest
    challenge: Annotated[str, Meta(max_length=512)] | None
    finished: Time


def delegate(
    signing: Ed25519PrivateKey,
    run_public: bytes,
    *,
    run_id: str,
    plan_digest: str,
    seconds: float,
    now: datetime | None = None,
) -> dict[str, Any]:
    """The operator's delegation to a run's key, valid for `seconds`, as an envelope."""
    issued = now or utc()
    body = Delegation(
        run_id=run_id,
        plan_digest=plan_digest,
        run_public=run_public.hex(),
        issued=utc_text(issued),
        expires=utc_text(issued + timedelta(seconds=seconds)),
    )
    subjects = {"plan": plan_digest, "run-key": key_id(run_public)}
    return sign(statement(DELEGATION, subjects, msgspec.to_builtins(body)), signing)


def check_delegation(
    envelope: object,
    operator_public: bytes,
    *,
    run_id: str,
    plan_digest: str,
    at: datetime | None = None,
) -> bytes:
    """The run's raw public key, if the operator's delegation to it is for this run and plan and valid at `at`.

    Raises `RefusedError`: `envelope_*`, `statement_malformed`, `predicate_*`, `delegation_other_run`,
    `delegation_expired`.
    """
    body, subjects = read_predicate(envelope, operator_public, DELEGATION, Delegation)
    if (body.run_id, body.plan_digest) != (run_id, plan_digest):
        raise refusal("delegation_other_run")
    moment = at or utc()
    try:
        issued, expires = datetime.fromisoformat(body.issued), datetime.fromisoformat(body.expires)
        run_public = bytes.fromhex(body.run_public)
        valid = issued <= moment <= expires
    except (ValueError, TypeError) as error:
        raise refusal("predicate_malformed") from error
    if subjects != {"plan": plan_digest, "run-key": key_id(run_public)} or len(run_public) != 32:
        raise refusal("predicate_malformed")
    if not valid:
        raise refusal("delegation_expired")
    return run_public


def release_receipt(body: Release, run_key: Ed25519PrivateKey) -> dict[str, Any]:
    """The receipt of a release, signed and stored before the keys are sent."""
    return sign(statement(RELEASE, _release_subjects(body), msgspec.to_builtins(body)), run_key)


def _release_subjects(body: Release) -> dict[str, str]:
    return {
        "evidence": body.evidence_sha256,
        "result": body.result_sha256,
        "policy": body.policy_sha256,
        "package": body.manifest_sha256,
        "ciphertext": body.ciphertext_sha256,
    }


def read_release(envelope: object, run_public: bytes, *, run_id: str) -> Release:
    """A release receipt of one run; raises `RefusedError` (`receipt_other_run` and as `read_predicate`)."""
    body, subjects = read_predicate(envelope, run_public, RELEASE, Release)
    if subjects != _release_subjects(body):
        raise refusal("predicate_malformed", "its subjects are not those of its content")
    if body.run_id != run_id:
        raise refusal("receipt_other_run")
    return body


def closing_receipt(body: Closing, attester: Ed25519PrivateKey) -> dict[str, Any]:
    """The receipt that ends the allocation's log."""
    return sign(statement(CLOSING, {"pod-log": body.pod_head}, msgspec.to_builtins(body)), attester)


def read_closing(envelope: object, attester_public: bytes, *, run_id: str) -> Closing:
    """The closing receipt of one run; raises `RefusedError` (`receipt_other_run` and as `read_predicate`)."""
    body, subjects = read_predicate(envelope, attester_public, CLOSING, Closing)
    if subjects != {"pod-log": body.pod_head}:
        raise refusal("predicate_malformed", "its subjects are not those of its content")
    if body.run_id != run_id:
        raise refusal("receipt_other_run")
    return body


def run_receipt(
    *,
    run_id: str,
    row: Mapping[str, Any],
    plan_digest: str,
    manifest_sha256: str | None,
    adapters: Mapping[str, str],
    series: Mapping[str, str],
    runner_head: str,
    pod_head: str,
    delegation: Mapping[str, Any],
    bundle_sha256: str,
    challenge: str | None,
    privates: Sequence[Ed25519PrivateKey],
) -> dict[str, Any]:
    """The receipt of a whole run: row, package, adapters, step series and both heads are its subjects."""
    body = RunReceipt(
        run_id=run_id,
        row_sha256=digest_of(dict(row)),
        plan_digest=plan_digest,
        manifest_sha256=manifest_sha256,
        adapters=msgspec.convert(dict(adapters), dict[Segment, Digest]),
        series=msgspec.convert(dict(series), dict[Segment, Digest]),
        runner_head=runner_head,
        pod_head=pod_head,
        delegation_sha256=digest_of(dict(delegation)),
        bundle_sha256=bundle_sha256,
        challenge=challenge,
        finished=utc_now(),
    )
    return sign(statement(RUN, run_subjects(body), msgspec.to_builtins(body)), *privates)


def run_subjects(body: RunReceipt) -> dict[str, str]:
    """The subjects of a run's receipt: everything that it is about, by name."""
    subjects = {
        "row": body.row_sha256,
        "plan": body.plan_digest,
        "runner-log": body.runner_head,
        "pod-log": body.pod_head,
        **{f"adapter-{segment}": digest for segment, digest in body.adapters.items()},
        **{f"series-{segment}": digest for segment, digest in body.series.items()},
    }
    return subjects if body.manifest_sha256 is None else {**subjects, "package": body.manifest_sha256}


def read_run_receipt(
    envelope: object, publics: bytes | Sequence[bytes], *, run_id: str, row: Mapping[str, Any]
) -> RunReceipt:
    """The receipt of this run that covers exactly this row.

    Raises `RefusedError`: `receipt_other_run` (another run or row), and as `read_predicate`.
    """
    body, subjects = read_predicate(envelope, publics, RUN, RunReceipt)
    if subjects != run_subjects(body):
        raise refusal("predicate_malformed", "its subjects are not those of its content")
    if body.run_id != run_id or body.row_sha256 != digest_of(dict(row)):
        raise refusal("receipt_other_run")
    return body
