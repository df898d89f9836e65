"""The verdict's rules that a run's view alone decides, shared by the final verdict and the provisional checks.

The sentences are published with a row and compared when it is verified: a changed word makes older rows unequal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, Literal

import msgspec

from engine.plan import Target
from engine.store.views import Check, CheckStatus, RunView, SegmentView

Outcome = tuple[CheckStatus, str]
Group = Literal["lifecycle", "model_artifact"]
Applies = Literal["always", "protected", "pair"]

NAMES: Final[Mapping[Group, Mapping[str, Applies]]] = {
    "lifecycle": {
        "attestation_verified": "protected",
        "released_after_result": "protected",
        "trained_after_release": "protected",
        "chains_whole": "always",
        "zeroization_proven": "protected",
        "raw_completed": "always",
        "same_allocation": "pair",
        "allocation_gone": "always",
        "times_consistent": "always",
    },
    "model_artifact": {
        "finite": "always",
        "planned_stop": "always",
        "adapters_distinct": "pair",
        "adapters_open": "always",
        "same_losses": "pair",
        "same_tensors": "pair",
        "same_held_out": "pair",
        "step_chain": "protected",
        "nothing_injected": "always",
        "timing_consistent": "always",
    },
}
"""Every check by verdict, in the order in which they are shown, and the plans to which it applies."""
_AT_THE_END: Final[Outcome] = ("pending", "decided when the run ends")


def not_applicable(applies: Applies, segments: str) -> Outcome | None:
    """Why a check does not apply to a plan with these segments; None when it does."""
    if applies == "protected" and segments == "raw":
        return "not_applicable", "the plan has no protected segment"
    if applies == "pair" and segments != "pair":
        return "not_applicable", "the plan has one segment only"
    return None


def attestation(view: RunView) -> Outcome:
    """Whether the evidence met the policy."""
    state = view.summary.attestation
    if state == "verified":
        return "passed", f"evidence met the policy (tier {view.tier}, EAR {view.ear_status})"
    codes = ", ".join(view.reason_codes) or "no evidence"
    return "failed", f"attestation is {state}: {codes}"


def zeroization(view: RunView, faults: Collection[str]) -> Outcome:
    """Whether the wipe is proven; `faults` are the codes for which the receipt proves nothing."""
    state = view.summary.runtime_state
    if state == "zeroized" and not faults:
        return "passed", "the scan found the secrets before the wipe and none after it"
    return "failed", f"the runtime is {state}: {', '.join(faults)}".removesuffix(": ")


def raw_completed(view: RunView) -> Outcome:
    """Whether the raw segment ran to its end."""
    if view.summary.segments == "protected":
        return "not_applicable", "the plan has no raw segment"
    raw = view.segment("raw")
    if raw is not None and raw.state == "done":
        return "passed", f"{raw.steps} steps, to its end"
    return "failed", f"the raw segment is {raw.state if raw else 'absent'}"


def allocation_gone(view: RunView, listings: int | None) -> Outcome:
    """Whether the allocation is proven gone; `listings` that lacked it, None when that is not counted yet."""
    cleanup = view.summary.cleanup
    if cleanup == "not_ours":
        return "not_applicable", "the host is not ours to end"
    if cleanup == "kept":
        return "pending", "the allocation is kept"
    if cleanup == "gone" and listings:
        return "passed", f"absent in {listings} successful listings"
    if cleanup in {"active", "terminating"}:
        return "pending", f"the allocation is {cleanup}"
    return "failed", f"the allocation is {cleanup}"


def planned_stop(view: RunView, target: Target) -> Outcome:
    """Whether each segment stopped for the planned reason, and reached the target that it claims."""
    planned = "step_budget" if target.steps is not None else "target_seconds"
    for segment in view.segments:
        if segment.stop_reason != planned:
            return "failed", f"the {segment.kind} segment stopped by {segment.stop_reason or 'nothing'}"
        if not _reached(target, segment):
            return (
                "failed",
                f"the {segment.kind} segment says {planned}, but its {segment.steps} steps do not reach the target",
            )
    return "passed", f"stopped by {planned}"


def _reached(target: Target, segment: SegmentView) -> bool:
    """Whether the measured steps are what the stop reason claims."""
    if target.steps is not None:
        return segment.steps == target.steps
    return target.seconds is not None and round((segment.elapsed_sec or 0.0) * 1e9) >= round(target.seconds * 1e9)


def adapters_distinct(view: RunView) -> Outcome:
    """Whether the two adapters are two files: run and segment are bound into each."""
    raw, protected = view.segment("raw"), view.segment("protected")
    first = raw.adapter_sha256 if raw else None
    second = protected.adapter_sha256 if protected else None
    if first is None or second is None:
        return "failed", "an adapter is missing"
    return ("failed", "the artifacts are one file") if first == second else ("passed", "two artifacts")


def provisional(view: RunView) -> tuple[Check, ...]:
    """The checks of a run in progress: each by the final rule once the stored states decide it, else pending."""
    checks = []
    for group, names in NAMES.items():
        for name, applies in names.items():
            outcome = not_applicable(applies, view.summary.segments)
            if outcome is None:
                outcome = _SO_FAR[name](view) if name in _SO_FAR else _AT_THE_END
            checks.append(Check(name=name, group=group, status=outcome[0], reason=outcome[1]))
    return tuple(checks)


def _attestation_so_far(view: RunView) -> Outcome:
    state = view.summary.attestation
    return attestation(view) if state in ("verified", "rejected") else ("pending", f"attestation is {state}")


def _zeroization_so_far(view: RunView) -> Outcome:
    state = view.summary.runtime_state  # the runner sets it from the receipt's faults
    return zeroization(view, ()) if state in ("zeroized", "unverified") else ("pending", f"the runtime is {state}")


def _raw_so_far(view: RunView) -> Outcome:
    outcome, raw = raw_completed(view), view.segment("raw")
    is_running = raw is not None and raw.state not in ("done", "failed")
    return ("pending", outcome[1]) if is_running and outcome[0] == "failed" else outcome


def _gone_so_far(view: RunView) -> Outcome:
    return _AT_THE_END if view.summary.cleanup == "gone" else allocation_gone(view, None)


def _adapters_so_far(view: RunView) -> Outcome:
    is_complete = all(segment.adapter_sha256 is not None for segment in view.segments)
    return adapters_distinct(view) if is_complete else ("pending", "an adapter is missing")


def _stop_so_far(view: RunView) -> Outcome:
    """A segment that stopped for another reason fails the check at once; the rest waits for the last segment."""
    target = Target(seconds=view.summary.target_sec, steps=view.summary.step_budget)
    for segment in view.segments:
        if segment.stop_reason is not None:
            alone = planned_stop(msgspec.structs.replace(view, segments=(segment,)), target)
            if alone[0] == "failed":
                return alone
    if any(segment.stop_reason is None for segment in view.segments):
        return "pending", "a segment is still running"
    return planned_stop(view, target)


_SO_FAR: Final[Mapping[str, Callable[[RunView], Outcome]]] = {
    "attestation_verified": _attestation_so_far,
    "zeroization_proven": _zeroization_so_far,
    "raw_completed": _raw_so_far,
    "allocation_gone": _gone_so_far,
    "planned_stop": _stop_so_far,
    "adapters_distinct": _adapters_so_far,
}
"""Checks that the stored states can decide before the run ends."""
