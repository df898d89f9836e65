"""What a row is computed from: both logs, the series, evidence and receipts of one run."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.errors import WireError
from engine.plan import Plan, load_plan
from engine.store.reader import Reader
from engine.store.views import RunView, SegmentView, Series
from engine.wire import ChainReader, Event


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One run's stored material. `*_whole` is False when that log's chain does not verify from its first line."""

    view: RunView
    plan: Plan
    runner_log: list[Event]
    pod_log: list[Event]
    runner_whole: bool
    pod_whole: bool
    evidence: dict[str, Any]
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


def _whole(run_id: str, log: list[Event]) -> bool:
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
        runner_whole=_whole(run_id, runner_log),
        pod_whole=_whole(run_id, pod_log),
        evidence=reader.evidence(run_id),
        receipts=reader.receipts(run_id),
        series={segment.kind: reader.series(run_id, segment.kind) for segment in view.segments},
    )
