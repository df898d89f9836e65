"""What `Reader` returns: frozen views, one per subject. Times are UTC (RFC 3339, milliseconds)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from engine.events import TrainEvaluated
from engine.store.deadline import Deadline, Listed, Recheck
from engine.store.failure import Failure

RunState = Literal[
    "queued", "allocating", "connecting", "staging", "running", "collecting", "cleaning",
    "finished", "failed", "cancelled",
]  # fmt: skip
SegmentState = Literal[
    "pending", "launching", "attesting", "releasing", "loading", "warming", "training", "sealing",
    "zeroizing", "done", "failed",
]  # fmt: skip
AttestationState = Literal["not_requested", "awaiting_evidence", "verified", "rejected"]
KeyState = Literal["withheld", "released", "destroyed"]
RuntimeState = Literal["pending", "running", "zeroizing", "zeroized", "unverified"]
CleanupState = Literal["active", "kept", "terminating", "gone", "leaked", "not_ours"]
LedgerState = Literal["intent", "created", "ready", "kept", "releasing", "gone", "leaked", "not_ours"]
RequestKind = Literal["cancel", "keep"]
CheckStatus = Literal["passed", "failed", "not_applicable", "pending"]
Source = Literal["mine", "published"]

WARNING: Final = "note"
"""The subject of a transition that only records a warning of the runner."""
FINAL_RUN_STATES: Final = ("finished", "failed", "cancelled")
RAW_STAGES: Final = ("pending", "launching", "loading", "warming", "training", "done")
PROTECTED_STAGES: Final = (
    "pending", "launching", "attesting", "releasing", "loading", "warming", "training", "sealing",
    "zeroizing", "done",
)  # fmt: skip


class _View(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    pass


class Check(_View, frozen=True, kw_only=True):
    """One named check of a verdict. `group` is `lifecycle` or `model_artifact`."""

    name: str
    group: Literal["lifecycle", "model_artifact"]
    status: CheckStatus
    reason: str


class Transition(_View, frozen=True, kw_only=True):
    """One change of state.

    `subject`: run, segment:raw, segment:protected, attestation, key, runtime, cleanup; note for a warning.
    """

    id: int
    subject: str
    state: str
    at: str
    reason: str
    error: Failure | None = None


class SegmentView(_View, frozen=True, kw_only=True):
    """One segment, live or final; None is unknown. `elapsed_sec`: measured training time without settling steps."""

    kind: Literal["raw", "protected"]
    position: int
    state: SegmentState
    reason: str
    stop_reason: str | None
    steps: int
    elapsed_sec: float | None
    last_loss: float | None
    final_loss: float | None
    adapter_sha256: str | None
    tensor_digest: str | None
    phases: dict[str, float]
    error: Failure | None = None

    @property
    def steps_per_second(self) -> float | None:
        """Mean rate over the measured window, or None before the first measured step."""
        return self.steps / self.elapsed_sec if self.elapsed_sec else None


class RunSummary(_View, frozen=True, kw_only=True):
    """One line of a list of runs; enough for Fleet, History and `runs`."""

    id: str
    source: Source
    label: str
    preset: str | None
    provider: str
    gpu_model: str | None
    model: str
    segments: Literal["pair", "protected", "raw"]
    order: str | None
    state: RunState
    reason: str
    created_at: str
    started_at: str | None
    finished_at: str | None
    target_sec: float | None
    step_budget: int | None
    raw_steps: int | None
    protected_steps: int | None
    overhead_pct: float | None
    attestation: AttestationState
    key: KeyState
    runtime_state: RuntimeState
    cleanup: CleanupState
    clean: bool | None
    orphaned: bool
    """True when the run is not final and no running runner owns it."""
    timing_slack_pct: float | None = None
    """By how much the overhead could be off with step times that the runner's clock does not contradict, in percent."""
    duration_sec: float | None = None
    """Seconds from start to end, or until now, by this machine's boot clock; None if it was restarted in between."""
    error: Failure | None = None
    """Why it failed; also while it still cleans up."""


class RunView(_View, frozen=True, kw_only=True):
    """One run, whole: the summary, its plan, segments, transitions and, once final, its row."""

    summary: RunSummary
    plan: dict[str, Any] | None
    plan_digest: str | None
    segments: tuple[SegmentView, ...]
    transitions: tuple[Transition, ...]
    checks: tuple[Check, ...]
    row: dict[str, Any] | None
    tier: str | None
    ear_status: str | None
    reason_codes: tuple[str, ...]
    enforcement: dict[str, str] | None = None
    """The observed state of each hardening control, from the evidence; None before there is evidence."""
    environment: dict[str, Any] | None = None
    """The source of the allocation's Python packages, the seconds that their installation took, and the measurement."""
    evaluations: tuple[TrainEvaluated, ...] = ()
    """The held-out losses so far, in the order in which they were logged."""

    @property
    def warnings(self) -> tuple[Transition, ...]:
        """What the runner noted on the way, oldest first."""
        return tuple(move for move in self.transitions if move.subject == WARNING)

    @property
    def failures(self) -> tuple[Transition, ...]:
        """What failed beside the run itself, such as wipe or clean-up: the newest moves, each failure once."""
        newest = {move.subject: move for move in self.transitions if move.subject != WARNING}
        told = {None if self.summary.error is None else self.summary.error.text}
        found = []
        for move in newest.values():
            if move.error is not None and move.error.text not in told:
                told.add(move.error.text)
                found.append(move)
        return tuple(found)

    def segment(self, kind: str) -> SegmentView | None:
        """The segment of this kind, or None if the plan has none."""
        return next((segment for segment in self.segments if segment.kind == kind), None)


class Series(_View, frozen=True, kw_only=True):
    """Per-step series of one segment: float32 losses and step times in nanoseconds, equally long.

    The store and an artifact give packed arrays, which take 12 bytes a step; tuples would take some 80.
    """

    losses: Sequence[float]
    nanos: Sequence[int]


class LogLine(_View, frozen=True, kw_only=True):
    """One line of a run's two logs, in order of arrival. `chain` is `runner` or `pod`."""

    rowid: int
    chain: Literal["runner", "pod"]
    seq: int
    ts: str
    event: str
    body: dict[str, Any]


class AllocationView(_View, frozen=True, kw_only=True):
    """One allocation of the ledger. Prices in USD; None is unknown.

    `run_id`: the run that uses it, or used it last. `lease`: as its provider returned it. It ends at `keep_until`
    when no run uses it, at `deadline` even if in use, and at `intended_until` when it never got a lease.
    """

    id: str
    provider: str
    name: str
    provider_id: str | None = None
    gpu_model: str | None
    state: CleanupState
    ledger_state: LedgerState
    reason: str = ""
    error: Failure | None = None
    created_at: str
    released_at: str | None
    price_per_hour: float | None
    spent: float | None
    run_id: str | None
    run_state: RunState | None
    lease: dict[str, Any] | None = None
    keep_until: Deadline | None = None
    deadline: Deadline | None = None
    intended_until: Deadline | None = None
    age_sec: float | None = None
    """Seconds from its request to its end, or until now, by the boot clock; else as the provider states it; or None."""
    listed: Listed | None = None
    recheck: Recheck | None = None


class Request(_View, frozen=True, kw_only=True):
    """A request of console or command line to a runner, or, with `run_id` None, to no particular run."""

    id: int
    run_id: str | None
    kind: RequestKind
    at: str
    detail: dict[str, Any]
