"""What a row is computed from: both logs, the series and the receipts of one run.

It comes from the store (`gather`), or from a public artifact (`engine.records.rebuild`); the checks do not know which.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from engine.attestation.receipts import read_closing
from engine.attestation.statements import unverified_payload
from engine.attestation.zeroization import Zeroization, zeroization_faults
from engine.errors import RefusedError, WireError
from engine.plan import Plan, load_plan
from engine.store.reader import Reader
from engine.store.views import RunView, SegmentView, Series
from engine.wire import (
    ADAPTER_COLLECTED,
    ALLOCATION_GONE,
    LAUNCH_ACCEPTED,
    SEGMENT_STATE,
    ZEROIZE_DONE,
    ChainReader,
    Event,
)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One run's material. `*_whole` is False when that log's chain does not verify from its first line."""

    view: RunView
    plan: Plan
    runner_log: list[Event]
    pod_log: list[Event]
    runner_whole: bool
    pod_whole: bool
    receipts: dict[str, dict[str, Any]]
    series: dict[str, Series]

    def segment(self, kind: str) -> SegmentView | None:
        """The segment's view, or None when the plan has none of that kind."""
        return next((segment for segment in self.view.segments if segment.kind == kind), None)

    def pod(self, event: str, kind: str | None = None) -> list[Event]:
        """The allocation's events of a name, of one segment if asked."""
        return [e for e in self.pod_log if e.event == event and (kind is None or e.body.get("segment") == kind)]

    def runner(self, event: str) -> list[Event]:
        """The runner's events of a name."""
        return [e for e in self.runner_log if e.event == event]

    def identities(self) -> dict[str, Any]:
        """By segment, what the machine was seen to be when it began."""
        return {str(e.body["segment"]): e.body["identity"] for e in self.pod(SEGMENT_STATE) if "identity" in e.body}

    def collected(self) -> dict[str, dict[str, Any]]:
        """By segment, what the runner saw of the adapter that came home."""
        return {str(e.body["segment"]): e.body for e in self.runner(ADAPTER_COLLECTED)}

    def gone(self) -> dict[str, Any] | None:
        """What the provider listed after the release, or None before that was asked."""
        found = self.runner(ALLOCATION_GONE)
        return found[-1].body if found else None

    def is_closed(self) -> bool:
        """Whether the attester signed its log up to its end: what came after the wipe's receipt too."""
        launch, last = self.pod(LAUNCH_ACCEPTED), self.pod_log[-1]
        try:
            attester = base64.b64decode(launch[0].body["attesterKey"], validate=True)
            found = read_closing(last.body.get("receipt"), attester, run_id=self.view.summary.id)
        except (LookupError, TypeError, ValueError, RefusedError):
            return False
        return (found.pod_head, found.runner_head) == (last.prev, last.body.get("runnerHead"))

    def wipe_faults(self) -> tuple[str, ...]:
        """The codes for which zeroization is not proven, judged anew from the receipt; empty when it is."""
        receipt, done = self.receipts.get("zeroization"), self.pod(ZEROIZE_DONE)
        if receipt is None or not done:
            return ("zeroization_missing",)
        try:
            found = msgspec.convert(unverified_payload(receipt)["predicate"], Zeroization, strict=True)
        except (KeyError, TypeError, RefusedError, msgspec.ValidationError):
            return ("receipt_malformed",)
        return wipe_faults(found, done[-1].body)


def wipe_faults(found: Zeroization, told: dict[str, Any]) -> tuple[str, ...]:
    """What the receipt lacks, and what the allocation itself said of it (`told`: the body of `zeroize.done`)."""
    reasons = told.get("reasons")
    named = [str(reason)[:64] for reason in reasons[:16]] if isinstance(reasons, list) else ["receipt_malformed"]
    if not named and told.get("state") != "zeroized":
        named = ["zeroization_not_claimed"]
    return tuple(sorted({*zeroization_faults(found), *named}))


def is_whole(run_id: str, log: list[Event]) -> bool:
    """True when the log's chain verifies from its first line."""
    reader = ChainReader(run_id)
    try:
        for event in log:
            reader.check(event)
    except WireError:
        return False
    return bool(log)


def gather(reader: Reader, run_id: str) -> Facts:
    """Everything about a run of our own; raises `PlanError` for a run without a plan (a published row)."""
    view = reader.run(run_id)
    runner_log = list(reader.events(run_id, "runner"))
    pod_log = list(reader.events(run_id, "pod"))
    return Facts(
        view=view,
        plan=load_plan(view.plan),
        runner_log=runner_log,
        pod_log=pod_log,
        runner_whole=is_whole(run_id, runner_log),
        pod_whole=is_whole(run_id, pod_log),
        receipts=reader.receipts(run_id),
        series={segment.kind: reader.series(run_id, segment.kind) for segment in view.segments},
    )
