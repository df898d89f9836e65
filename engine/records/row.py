"""The row: one run under the published field names and additional ones of Glasshouse. Unknown is null, never zero."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import msgspec

from engine import __version__
from engine.measure.overhead import pair_overhead_pct
from engine.plan import FREE
from engine.records.checks import is_clean, verdicts
from engine.records.facts import Facts
from engine.records.learned import add_evaluations, add_learned, data_fields, segment_fields
from engine.records.timing import timing_slack_pct
from engine.records.updates import of_segments
from engine.store.views import Check, RunView, SegmentView

TIER_NOTE: Final = (
    "Software tier: whoever controls operator and machine together could fabricate this row. "
    "It is no hardware TEE claim."
)
PLACES: Final = 6
TIMING: Final = "timing_consistent"
OF_TIMING: Final = ("overheadPct", "overheadPrecisionPct", "timingSlackPct", "verdict")
"""Fields that say nothing when the step times contradict what else is known of them."""


_REASON: Final = re.compile(r"([a-z0-9_]+)(: .*)?", re.DOTALL)


def public_reason(reason: str) -> str:
    """The code of a reason `code: sentence`. The sentence is not published: it may name paths and machines."""
    match = _REASON.fullmatch(reason)
    return match[1] if match else ""


def overhead(raw: SegmentView | None, protected: SegmentView | None) -> float | None:
    """The overhead in percent by the published definition, or None before both segments have measured steps."""
    if raw is None or protected is None or not raw.elapsed_sec or not protected.elapsed_sec:
        return None
    if not raw.steps or not protected.steps:
        return None
    return pair_overhead_pct(
        raw_steps=raw.steps,
        raw_elapsed_sec=raw.elapsed_sec,
        protected_steps=protected.steps,
        protected_elapsed_sec=protected.elapsed_sec,
    )


def _rounded(value: float | None, places: int = PLACES) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, places)


def live_row(view: RunView) -> dict[str, Any]:
    """The preliminary row of a run that has not ended: what is not known yet is null, and it is never clean."""
    row = _row(view, view.checks, clean=None)
    add_evaluations(row, view.evaluations, view.summary.segments)
    return row


def build_row(
    facts: Facts, *, state: str, reason: str, cost_usd: float | None = None
) -> tuple[dict[str, Any], tuple[Check, ...]]:
    """The final row and its checks, for a run that ends in `state`; its view says when it ended.

    `cost_usd`: what its rented allocation cost so far, None where that is unknown.
    """
    checks = verdicts(facts)
    row = _row(facts.view, checks, clean=is_clean(checks) and state == "finished")
    row["state"], row["reason"], row["finishedAt"] = state, public_reason(reason), facts.view.summary.finished_at
    if row["costUsd"] is None:
        row["costUsd"] = _rounded(cost_usd, 4)
    identities = facts.identities()
    row["sameAllocation"] = (
        identities["raw"] == identities["protected"] if {"raw", "protected"} <= set(identities) else None
    )
    proof = facts.gone()
    row["cleanup"] = {
        "activeRunPodPodsAfterRun": None if proof is None else proof.count,
        "otherActivePods": None if proof is None else proof.others,
    }
    row["overheadPrecisionPct"] = _precision(facts)
    row["timingSlackPct"] = timing_slack_pct(facts) if facts.plan.segments == "pair" else None
    if any(check.name == TIMING and check.status == "failed" for check in checks):
        row |= dict.fromkeys(OF_TIMING)
    _add_updates(facts, row)
    add_learned(facts, row)
    return row, checks


def _add_updates(facts: Facts, row: dict[str, Any]) -> None:
    """What the segments trained, settling steps included."""
    counted = of_segments(facts)
    row["dataSamples"] = counted.samples
    for segment in row["segments"]:
        kind = segment["kind"]
        fields = counted.fields(counted.updates[kind])
        segment.update(fields)
        row |= {f"{kind}{name[0].upper()}{name[1:]}": value for name, value in fields.items()}


def _precision(facts: Facts) -> float | None:
    """Half-width in percent within this pair's segments; not a confidence interval. None if it is unknown."""
    import numpy as np

    from engine.measure.precision import within_segment_precision

    if facts.plan.segments != "pair":
        return None
    raw, protected = (np.array(facts.series[kind].nanos, dtype=np.uint64) for kind in ("raw", "protected"))
    precision = within_segment_precision(raw, protected, seed=facts.plan.seed)
    return None if precision is None else _rounded(precision.half_width_pct, 3)


def _row(view: RunView, checks: tuple[Check, ...], *, clean: bool | None) -> dict[str, Any]:
    summary = view.summary
    plan = view.plan or {}
    by_kind = {segment.kind: segment for segment in view.segments}
    raw, protected = by_kind.get("raw"), by_kind.get("protected")
    value = overhead(raw, protected)
    row: dict[str, Any] = {
        "id": summary.id,
        "label": summary.label,
        "provider": summary.provider,
        "gpuModel": summary.gpu_model,
        "model": summary.model,
        "modelRevision": plan.get("model", {}).get("revision"),
        "order": summary.order,
        "targetSec": summary.target_sec,
        "stepBudget": summary.step_budget,
        **_segment_fields("raw", raw),
        **_segment_fields("protected", protected),
        "overheadPct": _rounded(value, 2),
        "overheadCi95": None,
        "overheadPrecisionPct": None,
        "timingSlackPct": None,
        "noiseFloorPct": None,
        "verdict": "not resolved" if value is not None and clean is not None else None,
        "attestation": summary.attestation,
        "tier": view.tier,
        "earStatus": view.ear_status,
        "reasonCodes": list(view.reason_codes),
        "enforcement": view.enforcement,
        "keyState": summary.key,
        "runtimeState": summary.runtime_state,
        "sameAllocation": None,
        "cleanup": {"activeRunPodPodsAfterRun": None, "otherActivePods": None},
        "cleanupState": summary.cleanup,
        "phases": {segment.kind: segment.phases for segment in view.segments},
        "costUsd": 0.0 if summary.provider in FREE else None,
        "startedAt": summary.started_at,
        "finishedAt": summary.finished_at,
        "durationSec": _rounded(summary.duration_sec, 3),
        "state": summary.state,
        "reason": public_reason(summary.reason),
        "version": __version__,
        "planDigest": view.plan_digest,
        "dataDigest": plan.get("data", {}).get("digest"),
        "dataSamples": None,
        **data_fields(plan),
        "seed": plan.get("seed"),
        "challenge": plan.get("challenge"),
        "injectOverheadPct": plan.get("injectOverheadPct"),
        "clean": clean,
        "checks": [
            {"name": check.name, "group": check.group, "status": check.status, "reason": check.reason}
            for check in checks
        ],
        "segments": [_segment(segment) for segment in view.segments],
        "note": TIER_NOTE,
    }
    return row


def _segment_fields(kind: str, segment: SegmentView | None) -> dict[str, Any]:
    return {
        f"{kind}ElapsedSec": _rounded(segment.elapsed_sec) if segment else None,
        f"{kind}Steps": segment.steps if segment else None,
        f"{kind}Updates": None,
        f"{kind}SamplesUsed": None,
        f"{kind}Epochs": None,
        f"{kind}FinalLoss": segment.final_loss if segment else None,
        f"{kind}StopReason": segment.stop_reason if segment else None,
        f"{kind}AdapterSha256": segment.adapter_sha256 if segment else None,
        f"{kind}TensorDigest": segment.tensor_digest if segment else None,
    }


def _segment(segment: SegmentView) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(segment)
    del built["error"]  # sentence and hint are not published
    built["lastLoss"] = segment.last_loss if math.isfinite(segment.last_loss or 0.0) else None  # NaN is no JSON
    built["stepsPerSecond"] = _rounded(segment.steps_per_second)
    built["reason"] = public_reason(segment.reason)
    built |= {"updates": None, "samplesUsed": None, "epochs": None} | segment_fields()
    return built
