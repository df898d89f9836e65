"""The bodies of events: one type per event name, which writer, ingest and records share.

The allocation and the runner write no other events, and the runner accepts no others. An export publishes every field,
except the texts of `log` lines and the steps of `train.progress`, of which it publishes digests (`COMMITTED`; see
`engine.wire.committed`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from engine import wire
from engine.wire import Event

Chain = Literal["runner", "pod"]
"""Who wrote a log: the operator's runner, or the allocation's supervisor."""
Segment = Literal["raw", "protected"]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Code = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$(?!\n)")]
Key = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{43}=$(?!\n)")]
Token = Annotated[str, Meta(max_length=262_144)]  # its validity is checked by the verifier
Text = Annotated[str, Meta(max_length=256)]
Count = Annotated[int, Meta(ge=0)]
Base64 = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]*={0,2}$(?!\n)")]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"):
    """The body of an event. Fields with their default value are left out of the log."""


BodyT = TypeVar("BodyT", bound=Body)

# Parts of several events


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature of a DSSE envelope."""

    keyid: Digest
    sig: Base64


class Envelope(Body, frozen=True, kw_only=True):
    """A DSSE envelope of an in-toto statement."""

    payload: Base64
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: list[Signature]


class Gpu(Body, frozen=True, kw_only=True):
    """A GPU as reported by its driver."""

    uuid: Text
    name: Text
    driver: Text


class Machine(Body, frozen=True, kw_only=True):
    """The identity of a machine: equal in both segments, or they did not run on the same allocation.

    `pod_id` is the SHA-256 of the provider's id for the pod, not published itself: the pod's addresses derive from it.
    """

    nonce: Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{22}==$(?!\n)")]
    first_process_start: int
    gpu_uuid: Text | None
    pod_id: Digest | None
    cpu: Text


class Control(Body, frozen=True, kw_only=True):
    """The state of one hardening control as a process observed it."""

    value: Text
    detail: Text


# The runner's log


class PackageSealed(Body, frozen=True, kw_only=True):
    """`package.sealed`: what will be sent. `manifest_digest` is None for a raw run; `samples` are those trained on."""

    manifest_digest: Digest | None
    plan_digest: Digest
    bundle_digest: Digest
    samples: Annotated[int, Meta(ge=1)]


class ChallengeSent(Body, frozen=True, kw_only=True):
    """`attest.challenge`, the runner's side."""

    nonce_sha256: Digest
    pod_head: Digest


class ResultReached(Body, frozen=True, kw_only=True):
    """`attest.result`: the appraisal's EAR status and reason codes."""

    status: Code
    codes: list[Code]
    result_sha256: Digest
    pod_head: Digest


class ReleaseDenied(Body, frozen=True, kw_only=True):
    """`release.denied`, the runner's side."""

    codes: list[Code]
    pod_head: Digest


class ReleaseGranted(Body, frozen=True, kw_only=True):
    """`release.granted`: logged once, before the keys are sent."""

    receipt_sha256: Digest
    pod_head: Digest


class AdapterCollected(Body, frozen=True, kw_only=True):
    """`adapter.collected`: the runner's check of the downloaded adapter. `code` says what is wrong with it."""

    segment: Segment
    status: Literal["opened", "sealed", "wrong"]
    code: Code | None = None
    sha256: Digest | None = None
    sealed_sha256: Digest | None = None
    tensor_digest: Digest | None = None
    size: Count | None = None


class Sighting(Body, frozen=True, kw_only=True):
    """One event of the allocation's log that a reading brought. `step` is a checkpoint's, else None."""

    event: Literal["train.started", "train.checkpoint", "train.measured", "train.finished"]
    segment: Segment
    step: Count | None
    hash: Digest


class TrainObserved(Body, frozen=True, kw_only=True):
    """`train.observed`: when the runner saw events of the training, by the boot clock of the operator's machine.

    Both times are microseconds since the run's first reading under this clock. `at`: the reading that brought them was
    complete. `after`: a reading began that reached the log's end without them; None if there was none under this clock.
    `clock` is a digest of the machine's boot, so that times of two boots are never compared.
    """

    seen: Annotated[list[Sighting], Meta(min_length=1)]
    after: Count | None
    at: Count
    clock: Digest


class RunnerClosed(Body, frozen=True, kw_only=True):
    """`run.closed`, the runner's side."""

    pod_head: Digest


class AllocationGone(Body, frozen=True, kw_only=True):
    """`allocation.gone`: what the provider's listings showed after the release; None if it could not be counted."""

    count: Count | None
    listings: Count
    others: Count | None


# The allocation's log


class LaunchAccepted(Body, frozen=True, kw_only=True):
    """`launch.accepted`: the attester's key, and what was launched."""

    attester_key: Key
    bundle_digest: Digest
    job_digest: Digest
    pid: Count
    identity: Machine
    cpu: Text
    gpu: Gpu | None


class SegmentState(Body, frozen=True, kw_only=True):
    """`segment.state`; `at` in seconds on the supervisor's monotonic clock."""

    segment: Segment
    state: Code
    at: float
    identity: Machine | None = None
    code: Code | None = None
    stop_reason: Code | None = None


class AntiDebugReady(Body, frozen=True, kw_only=True):
    """`enclave.anti_debug_ready`: for each process, its controls as it observed them."""

    segment: Segment
    enforcement: dict[Code, dict[Code, Control]]


class Measured(Body, frozen=True, kw_only=True):
    """`enclave.measured`: SHA-256 of bundle, lock and environment."""

    bundle: Digest
    lock: Digest
    environment: Digest
    environment_bytes: Count
    environment_files: Count


class ChallengeTaken(Body, frozen=True, kw_only=True):
    """`attest.challenge`, the allocation's side."""

    nonce_sha256: Digest
    runner_head: Digest


class EvidenceSent(Body, frozen=True, kw_only=True):
    """`attest.evidence`: the signed token."""

    token: Token


class DenialTaken(Body, frozen=True, kw_only=True):
    """`release.denied`, the allocation's side."""

    codes: list[Code]


class PackageOpened(Body, frozen=True, kw_only=True):
    """`enclave.release_plan_completed`: linked to the release in the runner's log.

    `ciphertext_sha256` is the digest of the release as it arrived, which the runner's receipt states as well.
    """

    segment: Segment
    manifest_sha256: Digest
    ciphertext_sha256: Digest
    runner_head: Digest


class TrainStarted(Body, frozen=True, kw_only=True):
    """`train.started`: the first measured step comes next; `settling_steps` were run before it."""

    segment: Segment
    gpu: Gpu | None
    settling_steps: Count
    numerics: dict[Code, str | int | float | bool | None]


class TrainProgress(Body, frozen=True, kw_only=True):
    """`train.progress` as it is sent: steps `first` up to `to`, float32 losses and uint64 nanoseconds in base64."""

    segment: Segment
    first: Count = msgspec.field(name="from")
    to: Count
    losses: Base64
    nanos: Base64


class TrainEvaluated(Body, frozen=True, kw_only=True):
    """`train.evaluated`: the loss on held-out samples, before the settling steps or after the measured window.

    `loss` is the mean over the `tokens` that are learned, None where it is not finite. `answer` to the plan's question,
    if it has one: printable characters of any language.
    """

    segment: Segment
    moment: Literal["before", "after"]
    loss: Annotated[float, Meta(ge=0)] | None
    samples: Annotated[int, Meta(ge=1)]
    tokens: Annotated[int, Meta(ge=1)]
    answer: Text | None = None


class TrainCheckpoint(Body, frozen=True, kw_only=True):
    """`train.checkpoint`: a digest of the adapter after a step."""

    segment: Segment
    step: Count
    step_chain: Digest | None
    tensor_digest: Digest


class TrainMeasured(Body, frozen=True, kw_only=True):
    """`train.measured`: the last measured step is done, and nothing was computed since.

    `at` in seconds on the supervisor's monotonic clock, as in `segment.state`.
    """

    segment: Segment
    steps: Count
    elapsed_ns: Count
    at: float


class TrainFinished(Body, frozen=True, kw_only=True):
    """`train.finished`: the measured window. `final_loss` is None where it is not finite."""

    segment: Segment
    steps: Count
    stop_reason: Code
    final_loss: float | None
    elapsed_ns: Count
    adapter_finite: bool
    step_chain: Digest | None
    tensor_digest: Digest


class AdapterSaved(Body, frozen=True, kw_only=True):
    """`adapter.saved`: the raw segment's adapter."""

    segment: Segment
    sha256: Digest
    size: Count
    tensor_digest: Digest


class AdapterSealed(Body, frozen=True, kw_only=True):
    """`adapter.sealed`: the protected segment's adapter, and the file that it was sealed into."""

    segment: Segment
    sha256: Digest
    size: Count
    sealed_sha256: Digest
    sealed_size: Count
    tensor_digest: Digest
    nonce_sha256: Digest
    runner_head: Digest


class ZeroizeStarted(Body, frozen=True, kw_only=True):
    """`zeroize.started`."""

    segment: Segment


class ZeroizeScan(Body, frozen=True, kw_only=True):
    """`zeroize.scan`: by pattern, how often it was found in the scanned processes."""

    moment: Literal["before", "after"]
    targets: list[Text]
    hits: dict[Code, int]
    bytes_read: Count
    milliseconds: Count


class ZeroizeDone(Body, frozen=True, kw_only=True):
    """`zeroize.done`: the attester's receipt, and the reasons why it does not prove the wipe, if any."""

    segment: Segment
    state: Literal["zeroized", "unverified"]
    reasons: list[Code]
    receipt: Envelope


class PodClosed(Body, frozen=True, kw_only=True):
    """`run.closed`, the allocation's side: its log ends with the attester's signature over all of it."""

    runner_head: Digest | None
    failed: Segment | None
    receipt: Envelope


class LogLine(Body, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """`log` as it is sent: a line of text for the user, and the error code that it explains."""

    text: str = ""
    code: str | None = None


# What an export contains in place of two of them


class LogDigest(Body, frozen=True, kw_only=True):
    """Only the digest of a `log` line."""

    sha256: Digest


class ProgressDigest(Body, frozen=True, kw_only=True):
    """The range of a `train.progress` event's steps in the series, and their digest."""

    segment: Segment
    first: Count = msgspec.field(name="from")
    to: Count
    sha256: Digest


RUNNER: Final[dict[str, type[Body]]] = {
    wire.PACKAGE_SEALED: PackageSealed,
    wire.ATTEST_CHALLENGE: ChallengeSent,
    wire.ATTEST_RESULT: ResultReached,
    wire.RELEASE_DENIED: ReleaseDenied,
    wire.RELEASE_GRANTED: ReleaseGranted,
    wire.TRAIN_OBSERVED: TrainObserved,
    wire.ADAPTER_COLLECTED: AdapterCollected,
    wire.RUN_CLOSED: RunnerClosed,
    wire.ALLOCATION_GONE: AllocationGone,
}
POD: Final[dict[str, type[Body]]] = {
    wire.LAUNCH_ACCEPTED: LaunchAccepted,
    wire.SEGMENT_STATE: SegmentState,
    wire.ANTI_DEBUG_READY: AntiDebugReady,
    wire.MEASURED: Measured,
    wire.ATTEST_CHALLENGE: ChallengeTaken,
    wire.ATTEST_EVIDENCE: EvidenceSent,
    wire.RELEASE_DENIED: DenialTaken,
    wire.RELEASE_PLAN_COMPLETED: PackageOpened,
    wire.TRAIN_STARTED: TrainStarted,
    wire.TRAIN_PROGRESS: TrainProgress,
    wire.TRAIN_EVALUATED: TrainEvaluated,
    wire.TRAIN_CHECKPOINT: TrainCheckpoint,
    wire.TRAIN_MEASURED: TrainMeasured,
    wire.TRAIN_FINISHED: TrainFinished,
    wire.ADAPTER_SAVED: AdapterSaved,
    wire.ADAPTER_SEALED: AdapterSealed,
    wire.ZEROIZE_STARTED: ZeroizeStarted,
    wire.ZEROIZE_SCAN: ZeroizeScan,
    wire.ZEROIZE_DONE: ZeroizeDone,
    wire.RUN_CLOSED: PodClosed,
    wire.LOG: LogLine,
}
SENT: Final[dict[Chain, dict[str, type[Body]]]] = {"runner": RUNNER, "pod": POD}
"""The body of each event as it is written and sent."""
COMMITTED: Final[dict[Chain, dict[str, type[Body]]]] = {
    "runner": RUNNER,
    "pod": POD | {wire.TRAIN_PROGRESS: ProgressDigest, wire.LOG: LogDigest},
}
"""The body of each event as its hash covers it and an export publishes it."""
_NAMES: Final = {kind: name for table in SENT.values() for name, kind in table.items()}


def name_of(kind: type[Body]) -> str:
    """The event name for a type of body."""
    return _NAMES[kind]


def fields_of(body: Body) -> dict[str, Any]:
    """The body as it is written to the log."""
    fields: dict[str, Any] = msgspec.to_builtins(body)
    return fields


def read_body(event: Event, kind: type[BodyT]) -> BodyT:
    """The event's body as this type; raises `ValueError` if it is not valid."""
    try:
        return msgspec.convert(event.body, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ValueError(f"the body of {event.event} is not valid") from error
