"""The input from which a row is computed: both logs, the series and the receipts of one run.

It comes from the store (`gather`), or from a public artifact (`engine.records.rebuild`); the checks do not differ.
"""

from __future__ import annotations

import base64
import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Generic

import msgspec

from engine.attestation.policy import Policy, default_policy, policy_from
from engine.attestation.receipts import read_closing
from engine.attestation.statements import unverified_payload
from engine.attestation.wipe_proof import Expected
from engine.attestation.zeroization import Zeroization
from engine.errors import RefusedError, WireError
from engine.events import (
    AdapterCollected,
    AllocationGone,
    BodyT,
    Chain,
    LaunchAccepted,
    Machine,
    PodClosed,
    SegmentState,
    ZeroizeDone,
    fields_of,
    name_of,
    read_body,
)
from engine.plan import Plan, load_stored_plan
from engine.records.wipe import expected_wipe, wipe_faults
from engine.store.reader import Reader
from engine.store.views import RunView, SegmentView, Series
from engine.wire import ChainReader, Event

CLOCK_SLACK: Final = timedelta(minutes=5)
"""By how much a machine's clock may be adjusted during a run, where times are compared with each other."""


@dataclass(frozen=True)
class Logged(Generic[BodyT]):
    """An event with its typed body and its position in the log."""

    seq: int
    prev: str
    hash: str
    body: BodyT


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one run. `*_whole` is False when that log's chain does not verify from its first line.

    `policy` is the one that the evidence was appraised by, None before that.
    """

    view: RunView
    plan: Plan
    runner_log: list[Event]
    pod_log: list[Event]
    runner_whole: bool
    pod_whole: bool
    receipts: dict[str, dict[str, Any]]
    series: dict[str, Series]
    policy: Policy | None = None

    def segment(self, kind: str) -> SegmentView | None:
        """The segment's view, or None when the plan has none of that kind."""
        return self.view.segment(kind)

    def pod(self, kind: type[BodyT], segment: str | None = None) -> list[Logged[BodyT]]:
        """The allocation's events of a form, of one segment if given; raises `ValueError` for one in another form."""
        logged = _logged(self.pod_log, kind)
        return [one for one in logged if segment is None or getattr(one.body, "segment", None) == segment]

    def runner(self, kind: type[BodyT]) -> list[Logged[BodyT]]:
        """The runner's events of a form; raises `ValueError` for one in another form."""
        return _logged(self.runner_log, kind)

    def has(self, chain: Chain, name: str) -> bool:
        """Whether a log has an event of this name, even with an invalid body."""
        return any(event.event == name for event in (self.runner_log if chain == "runner" else self.pod_log))

    def identities(self) -> dict[str, Machine]:
        """By segment, the machine as it was when the segment began."""
        states = bodies(self.pod_log, SegmentState)
        return {state.segment: state.identity for state in states if state.identity is not None}

    def collected(self) -> dict[str, AdapterCollected]:
        """By segment, the result of the runner's check of the downloaded adapter."""
        return {one.body.segment: one.body for one in self.runner(AdapterCollected)}

    def gone(self) -> AllocationGone | None:
        """What the provider listed after the release; None before that was counted."""
        proofs = bodies(self.runner_log, AllocationGone)
        return proofs[-1] if proofs else None

    def delegated(self) -> str | None:
        """When the operator authorised the run's key, as its delegation states; None without one."""
        try:
            issued = unverified_payload(self.receipts["delegation"])["predicate"]["issued"]
        except (KeyError, TypeError, RefusedError):
            return None
        return issued if isinstance(issued, str) else None

    def is_closed(self) -> bool:
        """Whether the attester signed its log up to the end, including the events after the wipe's receipt."""
        launch, closed = self.pod(LaunchAccepted), self.pod(PodClosed)
        if not launch or not closed or closed[-1].hash != self.pod_log[-1].hash:
            return False
        last = closed[-1]
        try:
            attester = base64.b64decode(launch[0].body.attester_key, validate=True)
            signed = read_closing(fields_of(last.body.receipt), attester, run_id=self.view.summary.id)
        except (ValueError, RefusedError):
            return False
        if not _dated(signed.closed, after=self.pod_log[-2:-1], until=self.pod_log[-1]):
            return False
        return (signed.pod_head, signed.runner_head) == (last.prev, last.body.runner_head)

    def wipe_faults(self) -> tuple[str, ...]:
        """The codes why zeroization is not proven, re-evaluated from the receipt; empty when it is proven."""
        receipt, done = self.receipts.get("zeroization"), self.pod(ZeroizeDone)
        if receipt is None or not done:
            return ("zeroization_missing",)
        try:
            zeroization = msgspec.convert(unverified_payload(receipt)["predicate"], Zeroization, strict=True)
            expected = self.expected_wipe()
        except (KeyError, TypeError, ValueError, RefusedError):
            return ("predicate_malformed",)
        return wipe_faults(zeroization, done[-1].body, expected)

    def expected_wipe(self) -> Expected | None:
        """What the zeroization receipt must agree with; raises `ValueError` for an event of another form."""
        return expected_wipe(self.plan, self.policy or default_policy(), self.pod_log)


def _dated(text: str, *, after: list[Event], until: Event) -> bool:
    """Whether a time lies between two events of the same machine's log, whose clock may be adjusted in between."""
    try:
        earliest, at, latest = (datetime.fromisoformat(one) for one in (after[0].ts if after else text, text, until.ts))
    except ValueError:
        return False
    return earliest - CLOCK_SLACK <= at <= latest + CLOCK_SLACK


def _logged(log: list[Event], kind: type[BodyT]) -> list[Logged[BodyT]]:
    name = name_of(kind)
    return [Logged(event.seq, event.prev, event.hash, read_body(event, kind)) for event in log if event.event == name]


def bodies(log: list[Event], kind: type[BodyT]) -> list[BodyT]:
    """The bodies of a log's events of a form.

    One in another form is left out: a check fails because of it, and a row can still be made of the rest.
    """
    name, found = name_of(kind), []
    for event in log:
        if event.event == name:
            with contextlib.suppress(ValueError):
                found.append(read_body(event, kind))
    return found


def is_whole(run_id: str, log: list[Event]) -> bool:
    """True when the log's chain verifies from its first line."""
    reader = ChainReader(run_id)
    try:
        for event in log:
            reader.check(event)
    except WireError:
        return False
    return bool(log)


def policy_of(document: Any) -> Policy | None:
    """A stored policy; None where there is none, or none that can be read."""
    with contextlib.suppress(RefusedError):
        return None if document is None else policy_from(document)
    return None


def gather(reader: Reader, run_id: str) -> Facts:
    """The facts of the operator's own run; raises `PlanError` for a run without a plan (a published row)."""
    view = reader.run(run_id)
    runner_log = list(reader.events(run_id, "runner"))
    pod_log = list(reader.events(run_id, "pod"))
    return Facts(
        view=view,
        plan=load_stored_plan(view.plan),
        runner_log=runner_log,
        pod_log=pod_log,
        runner_whole=is_whole(run_id, runner_log),
        pod_whole=is_whole(run_id, pod_log),
        receipts=reader.receipts(run_id),
        series={segment.kind: reader.series(run_id, segment.kind) for segment in view.segments},
        policy=policy_of(reader.evidence(run_id).get("policy")),
    )
