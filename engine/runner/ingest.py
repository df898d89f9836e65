"""Takes the allocation's events into the store: exactly once, and only forwards through the states."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

from engine.attestation.evidence import observed_controls
from engine.errors import RefusedError, WireError
from engine.plan import SegmentKind
from engine.records.public import is_public
from engine.records.rebuild import gpu_model
from engine.store.reader import Reader
from engine.store.views import PROTECTED_STAGES
from engine.store.writer import Writer
from engine.wire import (
    ADAPTER_SAVED,
    ADAPTER_SEALED,
    ATTEST_EVIDENCE,
    LAUNCH_ACCEPTED,
    LOG,
    RELEASE_PLAN_COMPLETED,
    RUN_CLOSED,
    SEGMENT_STATE,
    TRAIN_FINISHED,
    ZEROIZE_DONE,
    Event,
    committed,
)

ORDERS: Final = {
    "attestation": ("not_requested", "awaiting_evidence", "verified", "rejected"),
    "key": ("withheld", "released", "destroyed"),
    "runtime": ("pending", "running", "zeroizing", "zeroized", "unverified"),
}
SEGMENT_ORDER: Final = (*PROTECTED_STAGES, "failed")
KEY_BYTES: Final = 32


class Expected:
    """What the launch must announce: the bundle and the job that were sent."""

    def __init__(self, bundle_digest: str, job_digest: str) -> None:
        self.bundle_digest = bundle_digest
        self.job_digest = job_digest


class Ingest:
    """The store's view of one run, moved on by its events. Applying an event again changes nothing."""

    def __init__(self, writer: Writer, reader: Reader, run_id: str) -> None:
        self._writer = writer
        self._run_id = run_id
        view = reader.run(run_id)
        self.states: dict[str, str] = {
            "attestation": view.summary.attestation,
            "key": view.summary.key,
            "runtime": view.summary.runtime_state,
            **{f"segment:{segment.kind}": segment.state for segment in view.segments},
        }
        self.expected: Expected | None = None
        self.launch: dict[str, Any] | None = None
        self.token: str | None = None
        self.nonce_digest: str | None = None
        self.closed = False
        self.released = False
        self.zeroization: dict[str, Any] | None = None
        self.finished: dict[str, dict[str, Any]] = {}
        self.adapters: dict[str, dict[str, Any]] = {}
        self._told: dict[str, str] = {}
        self._stage_since: dict[str, tuple[str, float]] = {}
        for event in reader.events(run_id, "pod"):
            self._remember(event)

    def advance(self, subject: str, state: str, reason: str = "") -> None:
        """Record a state when it lies ahead of the present one."""
        order = ORDERS.get(subject, SEGMENT_ORDER)
        if order.index(state) > order.index(self.states[subject]):
            self._writer.transition(self._run_id, subject, state, reason)
            self.states[subject] = state

    def settle(self) -> None:
        """No more events will come: a wipe that left no proof is not proven."""
        if self.states["key"] == "released" and self.states["runtime"] not in {"zeroized", "unverified"}:
            self.advance("runtime", "unverified", "zeroization_missing: the allocation left no receipt of a wipe")

    def take(self, events: Sequence[Event], offset: int) -> None:
        """Apply events, then commit them with the offset behind them; raises `RefusedError` for a foreign launch."""
        for event in events:
            try:
                self._check(event)
                self._apply(event)
                self._remember(event)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise WireError(f"An event {event.event} is malformed.", code="event_invalid") from error
        self._writer.ingest(self._run_id, events, offset)

    def _check(self, event: Event) -> None:
        self._check_form(event)
        if event.event == ATTEST_EVIDENCE and self.token is not None and str(event.body.get("token")) != self.token:
            # What was appraised must stay what is stored and exported.
            raise RefusedError("The allocation sent other evidence than before.", code="evidence_repeated")
        if event.event != LAUNCH_ACCEPTED or self.expected is None:
            return
        if self.launch is not None and self.launch != event.body:
            raise RefusedError("The allocation announced a second launch.", code="launch_repeated")
        if event.body.get("bundleDigest") != self.expected.bundle_digest:
            raise RefusedError("The allocation runs another bundle than was sent.", code="measurement_mismatch")
        if event.body.get("jobDigest") != self.expected.job_digest:
            raise RefusedError("The allocation runs another job than was sent.", code="job_mismatch")

    @staticmethod
    def _check_form(event: Event) -> None:
        """Every event will be published, but for lines for a person: nothing else may be in it than is public."""
        if not is_public("pod", event.event, committed(event.event, event.body)):
            raise ValueError("it has other fields or texts than are published")

    def _remember(self, event: Event) -> None:
        """Keep what later decisions need; also run over the stored log at a restart."""
        body = event.body
        if event.event == LAUNCH_ACCEPTED:
            self.launch = body
        elif event.event == ATTEST_EVIDENCE:
            self.token = str(body.get("token"))
        elif event.event == RELEASE_PLAN_COMPLETED:
            self.released = True
        elif event.event == TRAIN_FINISHED:
            self.finished[str(body.get("segment"))] = body
        elif event.event in {ADAPTER_SAVED, ADAPTER_SEALED}:
            self.adapters[str(body.get("segment"))] = body
        elif event.event == ZEROIZE_DONE:
            self.zeroization = body
        elif event.event == RUN_CLOSED:
            self.closed = True
        elif event.event == LOG and "code" in body:
            self._told[str(body["code"])] = str(body.get("text", ""))
        elif event.event == SEGMENT_STATE:
            segment = str(body.get("segment"))
            self._stage_since[segment] = (str(body.get("state")), float(body.get("at", 0.0)))

    def _apply(self, event: Event) -> None:
        body = event.body
        if event.event == SEGMENT_STATE:
            self._segment_state(body)
        elif event.event == LAUNCH_ACCEPTED:
            if len(base64.b64decode(body["attesterKey"], validate=True)) != KEY_BYTES:
                raise ValueError("an attester's key has another length")
            self._writer.describe(self._run_id, gpu_model=gpu_model(body))
            self._writer.evidence(self._run_id, "launch", body)
        elif event.event == ATTEST_EVIDENCE:
            self._writer.evidence(self._run_id, "token", {"token": body.get("token")})
            self._writer.evidence(self._run_id, "enforcement", observed_controls(str(body.get("token"))))
        elif event.event == TRAIN_FINISHED:
            self._train_finished(body)
        elif event.event in {ADAPTER_SAVED, ADAPTER_SEALED}:
            kind: SegmentKind = "raw" if event.event == ADAPTER_SAVED else "protected"
            self._writer.segment(self._run_id, kind, adapter_sha256=str(body["sha256"]))

    def _segment_state(self, body: dict[str, Any]) -> None:
        kind: SegmentKind = "raw" if body["segment"] == "raw" else "protected"
        state, at = str(body["state"]), float(body["at"])
        before = self._stage_since.get(kind)
        if before is not None and before[0] != state:
            self._writer.segment(self._run_id, kind, phases={before[0]: round(at - before[1], 6)})
        code = str(body.get("code", ""))
        self.advance(f"segment:{kind}", state, f"{code}: {self._told.get(code, '')}".rstrip(": ") if code else "")
        if body.get("stopReason"):
            self._writer.segment(self._run_id, kind, stop_reason=str(body["stopReason"]))
        if kind == "protected":
            if state == "attesting":
                self.advance("attestation", "awaiting_evidence")
            elif state == "loading":
                self.advance("runtime", "running")
            elif state == "zeroizing":
                self.advance("runtime", "zeroizing")

    def _train_finished(self, body: dict[str, Any]) -> None:
        kind: SegmentKind = "raw" if body["segment"] == "raw" else "protected"
        self._writer.segment(
            self._run_id,
            kind,
            final_loss=body["finalLoss"],
            stop_reason=str(body["stopReason"]),
            tensor_digest=str(body["tensorDigest"]),
        )
