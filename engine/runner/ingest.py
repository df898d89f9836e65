"""Stores the allocation's events, each exactly once, and advances the run's states, never backwards."""

from __future__ import annotations

import base64
import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from engine.attestation.evidence import observed_controls
from engine.attestation.reasons import refusal
from engine.attestation.receipts import Release
from engine.errors import RefusedError, WireError
from engine.events import (
    POD,
    AdapterSaved,
    AdapterSealed,
    Body,
    EvidenceSent,
    LaunchAccepted,
    LogLine,
    PackageOpened,
    PodClosed,
    ProgressDigest,
    SegmentState,
    TrainFinished,
    TrainStarted,
    ZeroizeDone,
    ZeroizeStarted,
    fields_of,
    name_of,
    read_body,
)
from engine.plan import load_stored_plan
from engine.records.contradictions import ONCE
from engine.records.progression import Progression
from engine.records.public import is_public
from engine.records.rebuild import gpu_model
from engine.remote.tail import Tailed
from engine.runner.pod_failures import reported
from engine.store import progress
from engine.store.failure import Failure, Reason
from engine.store.reader import Reader
from engine.store.views import PROTECTED_STAGES
from engine.store.writer import Writer
from engine.wire import LOG, TRAIN_PROGRESS, Event, committed

ORDERS: Final = {
    "attestation": ("not_requested", "awaiting_evidence", "verified", "rejected"),
    "key": ("withheld", "released", "destroyed"),
    "runtime": ("pending", "running", "zeroizing", "zeroized", "unverified"),
}
SEGMENT_ORDER: Final = (*PROTECTED_STAGES, "failed")
KEY_BYTES: Final = 32
_NO_WIPE: Final = Failure(
    code="zeroization_missing",
    message="The allocation left no receipt of a wipe.",
    hint="Treat the secrets of this run as not wiped, and terminate the allocation.",
)


Noting = Callable[[Sequence[Event]], None]
"""Called with the new events of a reading, inside the transaction that stores them."""


class Expected(NamedTuple):
    """What the launch event must name: the digests of the bundle and the job that were sent."""

    bundle_digest: str
    job_digest: str


@dataclass
class _Known:
    """What the log contained so far, and the resulting states."""

    states: dict[str, str]
    progression: Progression
    launch: LaunchAccepted | None = None
    token: str | None = None
    opened: bool = False
    closed: bool = False
    zeroization: ZeroizeDone | None = None
    adapters: dict[str, AdapterSaved | AdapterSealed] = field(default_factory=dict)
    explanations: dict[str, str] = field(default_factory=dict)
    """Error codes of `log` lines, with the sentence that came with each."""
    told: set[type[Body]] = field(default_factory=set)
    """The kinds of events so far."""
    entered: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By segment, its state and when that began, in seconds on the supervisor's clock."""


class Ingest:
    """Applies the events of one run to the store. Applying an event again changes nothing."""

    def __init__(self, writer: Writer, reader: Reader, run_id: str) -> None:
        self._writer = writer
        self._run_id = run_id
        view = reader.run(run_id)
        self._known = _Known(
            {
                "attestation": view.summary.attestation,
                "key": view.summary.key,
                "runtime": view.summary.runtime_state,
                **{f"segment:{segment.kind}": segment.state for segment in view.segments},
            },
            Progression(load_stored_plan(view.plan)),
        )
        self.expected: Expected | None = None
        self.nonce_digest: str | None = None
        """SHA-256 of the nonce that was sent, once there is one."""
        self.released: Release | None = None
        """What the receipt of the release states, once there is one."""
        for event in reader.events(run_id, "pod"):
            # An earlier version may have stored what is refused now, in a form that is not known now.
            with contextlib.suppress(RefusedError, WireError, ValueError):
                self._follow(event)
            with contextlib.suppress(WireError, ValueError):
                if event.event != TRAIN_PROGRESS:
                    self._remember(_body_of(event))

    @property
    def states(self) -> dict[str, str]:
        """The present state of each subject: attestation, key, runtime, `segment:raw`, `segment:protected`."""
        return self._known.states

    @property
    def launch(self) -> LaunchAccepted | None:
        """The launch event, None before it."""
        return self._known.launch

    @property
    def token(self) -> str | None:
        """The evidence token, None before it was sent."""
        return self._known.token

    @property
    def opened(self) -> bool:
        """True once the allocation opened the package with the released keys."""
        return self._known.opened

    @property
    def closed(self) -> bool:
        """True once the log is closed."""
        return self._known.closed

    @property
    def zeroization(self) -> ZeroizeDone | None:
        """The allocation's report of its wipe, None before it."""
        return self._known.zeroization

    @property
    def adapters(self) -> dict[str, AdapterSaved | AdapterSealed]:
        """By segment, the adapter that the log names."""
        return self._known.adapters

    def advance(self, subject: str, state: str, reason: Reason = "") -> None:
        """Record a state if it comes after the present one."""
        order = ORDERS.get(subject, SEGMENT_ORDER)
        if order.index(state) > order.index(self.states[subject]):
            self._writer.transition(self._run_id, subject, state, reason)
            self.states[subject] = state

    def settle(self) -> None:
        """Call when no more events will come: without a receipt the wipe counts as unverified."""
        if self.states["key"] == "released" and self.states["runtime"] not in {"zeroized", "unverified"}:
            self.advance("runtime", "unverified", _NO_WIPE)

    def take(self, received: Sequence[Tailed], noting: Noting = lambda events: None) -> None:
        """Apply one read of the log in one transaction: events, offset, states, segment fields, and what `noting`
        writes about the events that are new.

        Raises `WireError` (`event_invalid`, and as `Writer.ingest`) and `RefusedError` (`evidence_repeated`,
        `launch_repeated`, `measurement_mismatch`, `job_mismatch`, `release_other_result`, and as `Progression`). The
        events before the refused one are kept.
        """
        try:
            self._commit(received, noting)
        except (WireError, RefusedError):
            for one in received:  # the refused event raises again
                self._commit([one], noting)
            raise

    def _commit(self, received: Sequence[Tailed], noting: Noting) -> None:
        before = copy.deepcopy(self._known)
        try:
            with self._writer.transaction():
                stored = self._writer.tail(self._run_id, "pod").next_seq
                events = [event for event, _ in received if event.seq >= stored]
                for event in events:
                    self._apply_event(event)
                self._writer.ingest(self._run_id, events, received[-1].end)
                noting(events)
        except BaseException:
            self._known = before
            raise

    def _apply_event(self, event: Event) -> None:
        try:
            _require_public(event)
            self._follow(event)
            if event.event == TRAIN_PROGRESS:
                return  # the store reads its steps
            body = _body_of(event)
            self._check(body)
            self._apply(body)
            self._remember(body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WireError(f"An event {event.event} is malformed.", code="event_invalid") from error

    def _follow(self, event: Event) -> None:
        """Refuse what the plan cannot produce."""
        if event.event != TRAIN_PROGRESS:
            self._known.progression.take(_body_of(event))
            return
        steps = progress.steps_of(event.body)
        part = msgspec.convert(committed(TRAIN_PROGRESS, event.body), ProgressDigest, strict=True)
        losses, nanos = progress.unpack_losses(steps.losses), progress.unpack_nanos(steps.nanos)
        self._known.progression.steps(part, losses, nanos)

    def _check(self, body: Body) -> None:
        known = self._known
        if isinstance(body, EvidenceSent) and known.token is not None and body.token != known.token:
            # The evidence that is stored and exported must be the evidence that was appraised.
            raise RefusedError("The allocation sent evidence twice, and the two differ.", code="evidence_repeated")
        if isinstance(body, ONCE) and type(body) in known.told:
            raise RefusedError(f"The allocation reported {name_of(type(body))} a second time.", code="event_repeated")
        if isinstance(body, AdapterSealed) and ZeroizeStarted in known.told:
            raise refusal("training_out_of_order", "an adapter after the wipe began")
        if isinstance(body, TrainStarted) and known.launch is not None and body.gpu != known.launch.gpu:
            raise refusal("log_contradicts", "the accelerator of the launch and of the training")
        if isinstance(body, PackageOpened) and self.released is not None:
            opened = body.manifest_sha256, body.ciphertext_sha256
            if opened != (self.released.manifest_sha256, self.released.ciphertext_sha256):
                raise RefusedError(
                    "The allocation opened another release than the one sent.", code="release_other_result"
                )
        if not isinstance(body, LaunchAccepted) or self.expected is None:
            return
        if known.launch is not None and known.launch != body:
            raise RefusedError("The allocation reported a second, different launch.", code="launch_repeated")
        if body.bundle_digest != self.expected.bundle_digest:
            raise refusal("measurement_mismatch", "the allocation runs a bundle that is not the one sent")
        if body.job_digest != self.expected.job_digest:
            raise RefusedError("The allocation runs a job that is not the one sent.", code="job_mismatch")

    def _remember(self, body: Body) -> None:
        """Keep what later decisions need; also applied to the stored log after a restart."""
        known = self._known
        known.told.add(type(body))
        match body:
            case LaunchAccepted():
                known.launch = body
            case EvidenceSent():
                known.token = body.token
            case PackageOpened():
                known.opened = True
            case AdapterSaved():
                known.adapters["raw"] = body
            case AdapterSealed():
                known.adapters["protected"] = body
            case ZeroizeDone():
                known.zeroization = body
            case PodClosed():
                known.closed = True
            case LogLine(code=str(code)):
                known.explanations[code] = body.text
            case SegmentState():
                known.entered[body.segment] = (body.state, body.at)

    def _apply(self, body: Body) -> None:
        writer, run_id = self._writer, self._run_id
        match body:
            case SegmentState():
                self._segment_state(body)
            case LaunchAccepted():
                if len(base64.b64decode(body.attester_key, validate=True)) != KEY_BYTES:
                    raise ValueError("the attester's key has the wrong length")
                writer.describe(run_id, gpu_model=gpu_model(body))
                writer.evidence(run_id, "launch", fields_of(body))
            case EvidenceSent():
                writer.evidence(run_id, "token", {"token": body.token})
                writer.evidence(run_id, "enforcement", observed_controls(body.token))
            case TrainFinished():
                writer.segment(
                    run_id,
                    body.segment,
                    final_loss=body.final_loss,
                    stop_reason=body.stop_reason,
                    tensor_digest=body.tensor_digest,
                )
            case AdapterSaved():
                writer.segment(run_id, "raw", adapter_sha256=body.sha256)
            case AdapterSealed():
                writer.segment(run_id, "protected", adapter_sha256=body.sha256)

    def _segment_state(self, body: SegmentState) -> None:
        before = self._known.entered.get(body.segment)
        if before is not None and before[0] != body.state:
            self._writer.segment(self._run_id, body.segment, phases={before[0]: round(body.at - before[1], 6)})
        claim = self._known.explanations.get(body.code or "", "")
        why: Reason = "" if body.code is None else reported(body.segment, body.code, claim)
        self.advance(f"segment:{body.segment}", body.state, why)
        if body.stop_reason:
            self._writer.segment(self._run_id, body.segment, stop_reason=body.stop_reason)
        if body.segment == "protected":
            if body.state == "attesting":
                self.advance("attestation", "awaiting_evidence")
            elif body.state == "loading":
                self.advance("runtime", "running")
            elif body.state == "zeroizing":
                self.advance("runtime", "zeroizing")


def _require_public(event: Event) -> None:
    """Every event except `log` lines is published, so it may hold only publishable fields and texts."""
    if not is_public("pod", event.event, committed(event.event, event.body)):
        raise ValueError("it has fields or texts that may not be published")


def _body_of(event: Event) -> Body:
    """The typed body; a `log` line may hold anything, so an invalid one counts as empty."""
    try:
        return read_body(event, POD[event.event])
    except ValueError:
        if event.event == LOG:
            return LogLine()
        raise
