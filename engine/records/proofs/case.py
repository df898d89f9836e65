"""The artifact that the proofs examine: access to its parts, without checking them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from engine.attestation.challenge import Challenge
from engine.attestation.claims import Claims
from engine.attestation.ear import unverified_result
from engine.attestation.evidence import parse_evidence
from engine.attestation.reasons import refusal
from engine.attestation.receipts import (
    Delegation,
    Release,
    RunReceipt,
)
from engine.attestation.statements import unverified_payload
from engine.attestation.verifier import AttestationResult
from engine.errors import RefusedError
from engine.events import LaunchAccepted
from engine.records import rebuild
from engine.records.artifact import Artifact, Bundle
from engine.records.facts import Facts
from engine.records.trust import Anchors

PredicateT = TypeVar("PredicateT")
Proof = Callable[["Case"], str]


class NotApplicableError(Exception):
    """The run never came to what this proof is about."""


class UnknownError(RefusedError):
    """What this proof is about is covered by no reference value: nothing is wrong, and nothing is proven."""


class NotCheckedError(Exception):
    """The part that this proof needs was left out of the artifact."""


class Case:
    """One artifact to examine. Properties read its parts without checking them, and raise `RefusedError` on failure."""

    def __init__(self, artifact: Artifact, bundle: Bundle, anchors: Anchors) -> None:
        self.row = artifact.row
        self.bundle = bundle
        self.anchors = anchors
        self._artifact = artifact

    @property
    def facts(self) -> Facts:
        """The run's facts, from the artifact alone. A failure is cached, and every proof raises the same refusal."""
        facts = self._facts
        if isinstance(facts, RefusedError):
            raise facts
        return facts

    @cached_property
    def _facts(self) -> Facts | RefusedError:
        try:
            return rebuild.facts_of(self._artifact, self.bundle)
        except RefusedError as error:
            return error
        except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
            return refusal("artifact_malformed", type(error).__name__)

    @cached_property
    def recomputed_row(self) -> dict[str, Any]:
        """The row that follows from the facts."""
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
        return peek(self.bundle.delegation, Delegation)

    @property
    def run_key(self) -> bytes:
        """The run's raw public key, from the delegation."""
        try:
            return bytes.fromhex(self.delegation.run_public)
        except ValueError as error:
            raise refusal("predicate_malformed") from error

    @cached_property
    def run_receipt(self) -> RunReceipt:
        return peek(self.bundle.receipts.run, RunReceipt)

    @property
    def launch(self) -> LaunchAccepted:
        """The body of `launch.accepted`."""
        launches = self.facts.pod(LaunchAccepted)
        if not launches:
            raise NotApplicableError
        return launches[0].body

    @property
    def attester(self) -> bytes:
        """The attester's raw public key, from the launch event."""
        return base64.b64decode(self.launch.attester_key)

    @cached_property
    def claims(self) -> Claims:
        """The claims in the evidence, after its signature was checked."""
        if self.bundle.evidence is None:
            raise NotApplicableError
        return parse_evidence(self.bundle.evidence, self.attester)

    @cached_property
    def challenge(self) -> Challenge:
        if self.bundle.challenge is None:
            raise NotApplicableError
        return peek_payload(self.bundle.challenge, Challenge)

    @cached_property
    def result(self) -> AttestationResult:
        if self.bundle.result is None:
            raise NotApplicableError
        return unverified_result(self.bundle.result)

    @property
    def attested(self) -> bool:
        """Whether the runner accepted the evidence; if not, its claims need not hold."""
        return self.bundle.result is not None and self.result.accepted

    @cached_property
    def release(self) -> Release:
        if self.bundle.receipts.release is None:
            raise NotApplicableError
        return peek(self.bundle.receipts.release, Release)

    def hashes(self, chain: str) -> dict[str, int]:
        """The position of each event of a log, by its hash."""
        log = self.facts.runner_log if chain == "runner" else self.facts.pod_log
        return {event.hash: event.seq for event in log}


def peek_payload(envelope: dict[str, Any], kind: type[PredicateT]) -> PredicateT:
    """An envelope's whole payload, without checking its signature; raises `RefusedError` (`predicate_malformed`)."""
    try:
        return msgspec.convert(unverified_payload(envelope), kind, strict=True)
    except msgspec.ValidationError as error:
        raise refusal("predicate_malformed") from error


def peek(envelope: dict[str, Any], kind: type[PredicateT]) -> PredicateT:
    """The predicate of an envelope whose signature another proof checks."""
    try:
        return msgspec.convert(unverified_payload(envelope)["predicate"], kind, strict=True)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise refusal("predicate_malformed") from error


def moment(text: str) -> datetime:
    """A time in a statement; raises `RefusedError` (`predicate_malformed`)."""
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise refusal("predicate_malformed") from error


def require_equal(code: str, **pairs: tuple[object, object]) -> None:
    """Raise a refusal that names every pair of unequal values."""
    unequal = [name for name, (first, second) in pairs.items() if first != second or type(first) is not type(second)]
    if unequal:
        raise refusal(code, ", ".join(unequal))
