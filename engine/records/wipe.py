"""What a run's log and policy say about its wipe, so that the receipt can be held against both.

The runner judges a receipt by this when it arrives, a row when it is computed, and `verify` when it reads an artifact.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.attestation.policy import Policy
from engine.attestation.wipe_proof import Expected, zeroization_faults
from engine.attestation.zeroization import Zeroization
from engine.events import AdapterSealed, LaunchAccepted, SegmentState, ZeroizeDone, name_of, read_body
from engine.plan import Plan
from engine.wire import Event


def expected_wipe(plan: Plan, policy: Policy, pod_log: Sequence[Event]) -> Expected | None:
    """What the receipt in this log must agree with; None without a receipt, or with more than one.

    Raises `ValueError` for an event of another form.
    """
    receipts = [event for event in pod_log if event.event == name_of(ZeroizeDone)]
    if len(receipts) != 1:
        return None
    before = [event for event in pod_log if event.seq < receipts[0].seq]
    launches = [read_body(event, LaunchAccepted) for event in before if event.event == name_of(LaunchAccepted)]
    sealed = [read_body(event, AdapterSealed) for event in before if event.event == name_of(AdapterSealed)]
    return Expected(
        policy=policy,
        adapter_sha256=sealed[0].sha256 if len(sealed) == 1 else None,
        adapter_size=sealed[0].size if len(sealed) == 1 else 0,
        secret_weights=plan.model.source != "hub",
        gpu=bool(launches) and launches[0].gpu is not None,
        launched=_launched(before),
        logged=receipts[0].ts,
        pod_head=receipts[0].prev,
    )


def _launched(log: Sequence[Event]) -> str:
    """When the protected segment began to launch; empty if the log does not say so."""
    for event in log:
        if event.event == name_of(SegmentState):
            state = read_body(event, SegmentState)
            if (state.segment, state.state) == ("protected", "launching"):
                return event.ts
    return ""


def wipe_faults(proof: Zeroization, done: ZeroizeDone, expected: Expected | None) -> tuple[str, ...]:
    """The codes of what the receipt does not prove, and of what the allocation reports in `zeroize.done`."""
    reported = [str(reason) for reason in done.reasons[:16]]
    if not reported and done.state != "zeroized":
        reported = ["zeroization_not_claimed"]
    judged = ("zeroization_other_log",) if expected is None else zeroization_faults(proof, expected)
    return tuple(sorted({*judged, *reported}))
