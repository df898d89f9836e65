"""The artifact that the proofs examine: access to its parts, without checking them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import Any, Final, TypeVar

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
    check_delegation,
    read_run_receipt,
)
from engine.attestation.statements import unverified_payload
from engine.attestation.verifier import AttestationResult
from engine.errors import GlasshouseError, RefusedError
from engine.events import LaunchAccepted
from engine.records import rebuild
from engine.records.artifact import Artifact, Bundle
from engine.records.facts import Facts
from engine.records.trust import Anchors
from engine.wire import digest_of

PredicateT = TypeVar("PredicateT")
Proof = Callable[["Case"], str]
MALFORMED: Final = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
"""What code that reads a hostile document may raise besides refusals."""


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
        """The run's facts, from the artifact alone, without its series.

        A failure is cached, and every proof raises the same refusal.
        """
        return _or_raise(self._facts)

    @property
    def full_facts(self) -> Facts:
        """The facts with the series; fails as `facts` does."""
        return _or_raise(self._full_facts)

    @cached_property
    def _facts(self) -> Facts | RefusedError:
        return _tried(lambda: rebuild.facts_of(self._artifact, self.bundle))

    @cached_property
    def _full_facts(self) -> Facts | RefusedError:
        return _tried(lambda: rebuild.with_series(self.facts, self.bundle))

    @cached_property
    def is_signed(self) -> bool:
        """Whether the operator's delegation and the run's receipt carry valid signatures over plan and row.

        It costs little, so that nothing else is computed for a document that nobody signed.
        """
        try:
            self._check_delegation()
            read_run_receipt(self.bundle.receipts.run, self.run_key, run_id=self.run_id, row=self.row)
        except (GlasshouseError, *MALFORMED):
            return False
        return True

    def _check_delegation(self) -> None:
        """As the proof of the delegation does, except that an expired one is signed nevertheless."""
        plan = digest_of(self.bundle.plan)
        issued = moment(self.delegation.issued)
        check_delegation(self.bundle.delegation, self.operator, run_id=self.run_id, plan_digest=plan, at=issued)

    @cached_property
    def recomputed_row(self) -> dict[str, Any]:
        """The row that follows from the facts."""
        return rebuild.row_of(self.full_facts, self.row)

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


def _tried(build: Callable[[], Facts]) -> Facts | RefusedError:
    try:
        return build()
    except RefusedError as error:
        return error
    except MALFORMED as error:
        return refusal("artifact_malformed", type(error).__name__)


def _or_raise(facts: Facts | RefusedError) -> Facts:
    if isinstance(facts, RefusedError):
        raise facts
    return facts


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
