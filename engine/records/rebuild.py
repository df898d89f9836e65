"""The facts of a run from its public artifact alone, so that anyone can recompute its row.

States are derived from what was logged and signed, never taken from the row that is being checked. What only the
operator knows (when the run began, how it ended, what it cost) is taken as it was signed (`STATED`, and the cost).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engine.attestation.ear import peek_result
from engine.attestation.evidence import observed_controls
from engine.errors import PlanError
from engine.events import AdapterSaved, AdapterSealed, Chain, LaunchAccepted, ResultReached, SegmentState, TrainFinished
from engine.plan import Plan, load_plan
from engine.records.artifact import (
    MAX_STEPS,
    Artifact,
    Bundle,
    Entry,
    events_of,
    is_whole,
    logged_steps,
    malformed,
    unpacked,
)
from engine.records.facts import Facts, bodies, policy_of
from engine.records.learned import DIVERGED
from engine.records.public import is_public
from engine.records.row import OF_TIMING, TIMING, build_row
from engine.store.views import AttestationState, CleanupState, RunSummary, RunView, SegmentView, Series
from engine.wire import RELEASE_GRANTED, Event, digest_of

STATED: Final = frozenset({"startedAt", "finishedAt", "durationSec", "state", "reason", "version"})
"""Fields of a row that only the operator knows: they must be plausible, and are taken as they were signed."""
OF_SERIES: Final = frozenset({"finite", "same_losses", "step_chain", TIMING})
"""Checks that need the series."""
PRECISION: Final = "overheadPrecisionPct"
PRECISION_TOLERANCE: Final = 0.005
"""The precision is computed by resampling, and another processor may round its last digit differently."""


_UNPROVEN: Final = ("active", "kept", "terminating", "leaked")


def facts_of(artifact: Artifact, bundle: Bundle) -> Facts:
    """The facts in the artifact without its series; raises `RefusedError` (`artifact_malformed`) for a bad plan.

    Steps and times are the attester's own counts until `with_series`.
    """
    try:
        plan = load_plan(bundle.plan)
    except PlanError as error:
        raise malformed("its plan is not valid") from error
    run_id = str(artifact.row["id"])
    runner, pod = events_of(bundle.logs.runner, run_id), events_of(bundle.logs.pod, run_id)
    receipts = msgspec.to_builtins(bundle.receipts)
    facts = Facts(
        view=_view(artifact.row, bundle, plan, runner, pod),
        plan=plan,
        runner_log=runner,
        pod_log=pod,
        runner_whole=whole("runner", bundle.logs.runner, runner),
        pod_whole=whole("pod", bundle.logs.pod, pod),
        receipts={name: receipt for name, receipt in receipts.items() if receipt is not None},
        series={kind: Series(losses=(), nanos=()) for kind in plan.kinds()},
        policy=policy_of(bundle.policy),
    )
    return _with_final_states(facts)


def with_series(facts: Facts, bundle: Bundle) -> Facts:
    """The same facts with the artifact's series, if it has them; none is inflated beyond the steps of plan and log.

    Raises `RefusedError` (`artifact_malformed`, `series_mismatch`).
    """
    if bundle.series is None:
        return facts
    most = min(facts.plan.target.steps or MAX_STEPS, MAX_STEPS)
    logged = logged_steps(facts.pod_log)
    series = {str(kind): unpacked(blob, min(most, logged.get(kind, 0))) for kind, blob in bundle.series.items()}
    segments = tuple(
        _segment(one.kind, one.position, facts.pod_log, series.get(one.kind)) for one in facts.view.segments
    )
    return msgspec.structs.replace(
        facts,
        view=msgspec.structs.replace(facts.view, segments=segments),
        series={kind: series.get(kind, one) for kind, one in facts.series.items()},
    )


def whole(chain: Chain, entries: list[Entry], log: list[Event]) -> bool:
    """Whether the log's chain verifies, and the log contains only what may be published."""
    return all(is_public(chain, entry.event, entry.body) for entry in entries) and is_whole(log)


def row_of(facts: Facts, signed: dict[str, Any]) -> dict[str, Any]:
    """The row as this installation computes it from the facts, with `STATED` fields as they were signed."""
    computed, _ = build_row(
        facts, state=str(signed["state"]), reason=str(signed["reason"]), cost_usd=signed.get("costUsd")
    )
    return computed | {name: signed[name] for name in STATED if name in signed}


def differences(computed: dict[str, Any], signed: dict[str, Any], *, has_series: bool) -> list[str]:
    """The sorted names of the fields in which the computed row and the signed one differ.

    Without series, the fields that need them are not compared: precision, last losses, `diverged`, four checks,
    and `clean`.
    """
    names = sorted((computed.keys() | signed.keys()) - {PRECISION})
    if not has_series:
        if any(check["name"] == TIMING and check["status"] == "failed" for check in signed["checks"]):
            computed = computed | dict.fromkeys(OF_TIMING)  # a row may always claim less
        computed, signed = _without_series(computed), _without_series(signed)
    differing = [
        name for name in names if computed.get(name) != signed.get(name) or (name in computed) != (name in signed)
    ]
    if has_series and not _close(computed.get(PRECISION), signed.get(PRECISION)):
        differing.append(PRECISION)
    return differing


def _without_series(row: dict[str, Any]) -> dict[str, Any]:
    return row | {
        "clean": None,
        DIVERGED: None,
        "checks": [check for check in row["checks"] if check["name"] not in OF_SERIES],
        "segments": [{**segment, "lastLoss": None} for segment in row["segments"]],
    }


def _close(computed: float | None, signed: float | None) -> bool:
    if computed is None or signed is None:
        return computed is signed
    return abs(computed - signed) <= PRECISION_TOLERANCE


def _view(row: dict[str, Any], bundle: Bundle, plan: Plan, runner: list[Event], pod: list[Event]) -> RunView:
    result = peek_result(bundle.result) if bundle.result is not None else None
    results = bodies(runner, ResultReached)
    launches = bodies(pod, LaunchAccepted)
    requested = any(state.state == "attesting" for state in bodies(pod, SegmentState))
    attestation: AttestationState = "awaiting_evidence" if requested else "not_requested"
    if results:
        attestation = "verified" if results[-1].status in ("affirming", "warning") else "rejected"
    summary = RunSummary(
        id=str(row["id"]),
        source="mine",
        label=plan.label,
        preset=plan.preset,
        provider=plan.provider.name,
        gpu_model=gpu_model(launches[0]) if launches else row["gpuModel"],
        model=plan.model.name,
        segments=plan.segments,
        order=plan.order if plan.segments == "pair" else None,
        state=row["state"],
        reason=row["reason"],
        created_at=row["startedAt"] or "",
        started_at=row["startedAt"],
        finished_at=row["finishedAt"],
        target_sec=plan.target.seconds,
        step_budget=plan.target.steps,
        raw_steps=None,
        protected_steps=None,
        overhead_pct=None,
        attestation=attestation,
        key="released" if any(event.event == RELEASE_GRANTED for event in runner) else "withheld",
        runtime_state="pending",
        cleanup=row["cleanupState"] if row["cleanupState"] in _UNPROVEN else "leaked",
        clean=None,
        orphaned=False,
        duration_sec=row["durationSec"],
    )
    return RunView(
        summary=summary,
        plan=bundle.plan,
        plan_digest=digest_of(bundle.plan),
        segments=tuple(_segment(kind, place, pod, None) for place, kind in enumerate(plan.kinds())),
        transitions=(),
        checks=(),
        row=None,
        tier=result.tier if results and result is not None else None,
        ear_status=result.status if results and result is not None else None,
        reason_codes=tuple(results[-1].codes) if results else (),
        enforcement=observed_controls(bundle.evidence) if bundle.evidence is not None else None,
    )


def gpu_model(launch: LaunchAccepted) -> str:
    """The allocation's GPU or CPU, as named in `launch.accepted`."""
    return (launch.gpu.name if launch.gpu is not None else f"CPU ({launch.cpu})")[:120]


def _with_final_states(facts: Facts) -> Facts:
    """The same facts with the states that follow from the zeroization receipt and the last listing."""
    summary = facts.view.summary
    if summary.key == "released":
        proven = not facts.wipe_faults()
        summary = msgspec.structs.replace(
            summary, key="destroyed" if proven else "released", runtime_state="zeroized" if proven else "unverified"
        )
    gone = facts.gone()
    if gone is not None:
        count = gone.count
        owned = facts.plan.provider.kind.deletes
        cleanup: CleanupState = "gone" if count == 0 else "leaked" if owned or count else "not_ours"
        summary = msgspec.structs.replace(summary, cleanup=cleanup)
    return msgspec.structs.replace(facts, view=msgspec.structs.replace(facts.view, summary=summary))


def _segment(kind: str, position: int, pod: list[Event], series: Series | None) -> SegmentView:
    states = [body for body in bodies(pod, SegmentState) if body.segment == kind]
    finishes = [body for body in bodies(pod, TrainFinished) if body.segment == kind]
    finished = finishes[-1] if finishes else None
    adapters: Sequence[AdapterSaved | AdapterSealed] = (
        bodies(pod, AdapterSaved) if kind == "raw" else bodies(pod, AdapterSealed)
    )
    adapter = next((body for body in reversed(adapters) if body.segment == kind), None)
    stops = [body.stop_reason for body in finishes[-1:]] + [body.stop_reason for body in states if body.stop_reason]
    # Without the series the attester's own counts are used.
    nanos = sum(series.nanos) if series is not None else finished.elapsed_ns if finished else 0
    steps = len(series.losses) if series is not None else finished.steps if finished else 0
    last = states[-1] if states else None
    return SegmentView(
        kind="raw" if kind == "raw" else "protected",
        position=position,
        state=last.state if last else "pending",  # type: ignore[arg-type]  # an unknown state fails the row's checks
        reason=last.code or "" if last else "",
        stop_reason=stops[-1] if stops else None,
        steps=steps,
        elapsed_sec=nanos / 1e9 if nanos else None,
        last_loss=series.losses[-1] if series is not None and series.losses else None,
        final_loss=finished.final_loss if finished else None,
        adapter_sha256=adapter.sha256 if adapter else None,
        tensor_digest=finished.tensor_digest if finished else None,
        phases=phases(states),
    )


def phases(states: list[SegmentState]) -> dict[str, float]:
    """Seconds in each state of a segment, by the supervisor's clock; without the last one, which has no end."""
    return {
        before.state: round(after.at - before.at, 6)
        for before, after in itertools.pairwise(states)
        if before.state != after.state
    }
