"""The checks of a run in progress: each is decided as soon as the stored states allow.

They have the names of the final verdict's checks, which replace them when the run ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from engine.store.views import Check, CheckStatus, RunView
from glasshouse_tui.run_metrics import is_final, segment_of

Outcome = tuple[CheckStatus, str]

_AT_THE_END: Final[Outcome] = ("pending", "decided when the run ends")


def checks_of(view: RunView) -> tuple[Check, ...]:
    """The final verdict's checks if there are any, else the provisional ones; none for a published row."""
    if view.checks or view.summary.source == "published":
        return view.checks
    if is_final(view.summary):
        return ()
    return tuple(
        Check(name=name, group=group, status=outcome[0], reason=outcome[1])
        for group, table in GROUPS.items()
        for name, judge in table.items()
        for outcome in (judge(view),)
    )


def _at_the_end(_view: RunView) -> Outcome:
    return _AT_THE_END


def _protected_only(judge: Callable[[RunView], Outcome]) -> Callable[[RunView], Outcome]:
    def judged(view: RunView) -> Outcome:
        if view.summary.segments == "raw":
            return "not_applicable", "the plan has no protected segment"
        return judge(view)

    return judged


def _pair_only(judge: Callable[[RunView], Outcome]) -> Callable[[RunView], Outcome]:
    def judged(view: RunView) -> Outcome:
        if view.summary.segments != "pair":
            return "not_applicable", "the plan has only one segment"
        return judge(view)

    return judged


@_protected_only
def _attestation(view: RunView) -> Outcome:
    state = view.summary.attestation
    if state == "verified":
        return "passed", f"tier {view.tier or 'unknown'}, EAR {view.ear_status or 'unknown'}"
    if state == "rejected":
        return "failed", ", ".join(view.reason_codes) or "rejected"
    return "pending", "no result yet"


@_protected_only
def _zeroization(view: RunView) -> Outcome:
    state = view.summary.runtime_state
    if state == "zeroized":
        return "passed", "the scan found nothing after the wipe"
    return ("failed", "the runtime is unverified") if state == "unverified" else ("pending", f"the runtime is {state}")


def _raw_completed(view: RunView) -> Outcome:
    raw = segment_of(view, "raw")
    if raw is None:
        return "not_applicable", "the plan has no raw segment"
    if raw.state in ("done", "failed"):
        return ("passed", f"{raw.steps:,} steps") if raw.state == "done" else ("failed", "the raw segment failed")
    return "pending", f"the raw segment is {raw.state}"


def _gone(view: RunView) -> Outcome:
    state = view.summary.cleanup
    if state == "not_ours":
        return "not_applicable", "the host is not ours to terminate"
    if state == "leaked":
        return "failed", "the allocation is leaked"
    return ("passed", "proven absent") if state == "gone" else ("pending", f"the allocation is {state}")


def _planned_stop(view: RunView) -> Outcome:
    planned = "step_budget" if view.summary.step_budget else "target_seconds"
    stops = {segment.kind: segment.stop_reason for segment in view.segments}
    for kind, stop in stops.items():
        if stop is not None and stop != planned:
            return "failed", f"the {kind} segment stopped by {stop}"
    if all(stop == planned for stop in stops.values()):
        return "passed", f"stopped by {planned}"
    return "pending", "a segment is still running"


@_pair_only
def _distinct(view: RunView) -> Outcome:
    digests = [segment.adapter_sha256 for segment in view.segments]
    if None in digests:
        return "pending", "an adapter is still missing"
    return ("passed", "two artifacts") if len(set(digests)) > 1 else ("failed", "both adapters are the same file")


GROUPS: Final[dict[Literal["lifecycle", "model_artifact"], dict[str, Callable[[RunView], Outcome]]]] = {
    "lifecycle": {
        "attestation_verified": _attestation,
        "released_after_result": _protected_only(_at_the_end),
        "trained_after_release": _protected_only(_at_the_end),
        "chains_whole": _at_the_end,
        "zeroization_proven": _zeroization,
        "raw_completed": _raw_completed,
        "same_allocation": _pair_only(_at_the_end),
        "allocation_gone": _gone,
    },
    "model_artifact": {
        "finite": _at_the_end,
        "planned_stop": _planned_stop,
        "adapters_distinct": _distinct,
        "adapters_open": _at_the_end,
        "same_losses": _pair_only(_at_the_end),
        "same_tensors": _pair_only(_at_the_end),
        "step_chain": _protected_only(_at_the_end),
        "nothing_injected": _at_the_end,
    },
}
