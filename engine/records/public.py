"""What of a run's logs is published: by event, every field and its form.

The runner takes in nothing else from an allocation. Of lines for a person (`log`) and of steps only digests stand in an
exported log, which are what the chain's hashes cover (`engine.wire.committed`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engine import wire
from engine.attestation.public_text import is_public_text
from engine.attestation.statements import unverified_payload
from engine.errors import RefusedError
from engine.store.chains import Chain

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
Code = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$(?!\n)")]
Key = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{43}=$(?!\n)")]
Token = Annotated[str, Meta(max_length=262_144)]  # what it is worth is the verifier's question
Text = Annotated[str, Meta(max_length=256)]
Count = Annotated[int, Meta(ge=0)]
Base64 = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]*={0,2}$(?!\n)")]
Segment = Literal["raw", "protected"]


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature of a DSSE envelope."""

    keyid: Digest
    sig: Base64


class Envelope(_Body, frozen=True, kw_only=True):
    """A DSSE envelope of an in-toto statement."""

    payload: Base64
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: list[Signature]


class PackageSealed(_Body, frozen=True, kw_only=True):
    manifest_digest: Digest | None
    plan_digest: Digest
    bundle_digest: Digest


class RunnerChallenge(_Body, frozen=True, kw_only=True):
    nonce_sha256: Digest
    pod_head: Digest


class PodChallenge(_Body, frozen=True, kw_only=True):
    nonce_sha256: Digest
    runner_head: Digest


class Result(_Body, frozen=True, kw_only=True):
    status: Code
    codes: list[Code]
    result_sha256: Digest
    pod_head: Digest


class RunnerDenied(_Body, frozen=True, kw_only=True):
    codes: list[Code]
    pod_head: Digest


class PodDenied(_Body, frozen=True, kw_only=True):
    codes: list[Code]


class Granted(_Body, frozen=True, kw_only=True):
    receipt_sha256: Digest
    pod_head: Digest


class Collected(_Body, frozen=True, kw_only=True):
    segment: Segment
    status: Literal["opened", "sealed", "wrong"]
    code: Code | None = None
    sha256: Digest | None = None
    sealed_sha256: Digest | None = None
    tensor_digest: Digest | None = None
    size: Count | None = None


class RunnerClosed(_Body, frozen=True, kw_only=True):
    pod_head: Digest


class PodClosed(_Body, frozen=True, kw_only=True):
    runner_head: Digest | None
    failed: Segment | None
    receipt: Envelope


class Gone(_Body, frozen=True, kw_only=True):
    count: Count | None
    listings: Count
    others: Count | None


class Identity(_Body, frozen=True, kw_only=True):
    nonce: Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{22}==$(?!\n)")]
    first_process_start: int
    gpu_uuid: Text | None
    pod_id: Digest | None
    cpu: Text


class Gpu(_Body, frozen=True, kw_only=True):
    uuid: Text
    name: Text
    driver: Text


class Launch(_Body, frozen=True, kw_only=True):
    attester_key: Key
    bundle_digest: Digest
    job_digest: Digest
    pid: Count
    identity: Identity
    cpu: Text
    gpu: Gpu | None


class State(_Body, frozen=True, kw_only=True):
    segment: Segment
    state: Code
    at: float
    identity: Identity | None = None
    code: Code | None = None
    stop_reason: Code | None = None


class Observed(_Body, frozen=True, kw_only=True):
    value: Text
    detail: Text


class AntiDebug(_Body, frozen=True, kw_only=True):
    segment: Segment
    enforcement: dict[Code, dict[Code, Observed]]


class Measured(_Body, frozen=True, kw_only=True):
    bundle: Digest
    lock: Digest
    environment: Digest
    environment_bytes: Count
    environment_files: Count


class EvidenceMade(_Body, frozen=True, kw_only=True):
    token: Token


class Opened(_Body, frozen=True, kw_only=True):
    segment: Segment
    manifest_sha256: Digest
    runner_head: Digest


class Started(_Body, frozen=True, kw_only=True):
    segment: Segment
    gpu: Gpu | None
    numerics: dict[Code, str | int | float | bool | None]


class Checkpoint(_Body, frozen=True, kw_only=True):
    segment: Segment
    step: Count
    step_chain: Digest | None
    tensor_digest: Digest


class Finished(_Body, frozen=True, kw_only=True):
    segment: Segment
    steps: Count
    stop_reason: Code
    final_loss: float | None
    elapsed_ns: Count
    adapter_finite: bool
    step_chain: Digest | None
    tensor_digest: Digest


class Saved(_Body, frozen=True, kw_only=True):
    segment: Segment
    sha256: Digest
    size: Count
    tensor_digest: Digest


class Sealed(_Body, frozen=True, kw_only=True):
    segment: Segment
    sha256: Digest
    size: Count
    sealed_sha256: Digest
    sealed_size: Count
    tensor_digest: Digest
    nonce_sha256: Digest
    runner_head: Digest


class WipeStarted(_Body, frozen=True, kw_only=True):
    segment: Segment


class Scanned(_Body, frozen=True, kw_only=True):
    moment: Literal["before", "after"]
    targets: list[Text]
    hits: dict[Code, int]
    bytes_read: Count
    milliseconds: Count


class WipeDone(_Body, frozen=True, kw_only=True):
    segment: Segment
    state: Literal["zeroized", "unverified"]
    reasons: list[Code]
    receipt: Envelope


class Line(_Body, frozen=True, kw_only=True):
    """A line for a person, by its digest alone."""

    sha256: Digest


class ProgressMark(_Body, frozen=True, kw_only=True):
    """Which steps of the series an event brought, and their digest; the steps themselves are in the series."""

    segment: Segment
    first: Annotated[int, Meta(ge=0)] = msgspec.field(name="from")
    to: Annotated[int, Meta(ge=0)]
    sha256: Digest


RUNNER: Final[dict[str, type[_Body]]] = {
    wire.PACKAGE_SEALED: PackageSealed,
    wire.ATTEST_CHALLENGE: RunnerChallenge,
    wire.ATTEST_RESULT: Result,
    wire.RELEASE_DENIED: RunnerDenied,
    wire.RELEASE_GRANTED: Granted,
    wire.ADAPTER_COLLECTED: Collected,
    wire.RUN_CLOSED: RunnerClosed,
    wire.ALLOCATION_GONE: Gone,
}
POD: Final[dict[str, type[_Body]]] = {
    wire.LAUNCH_ACCEPTED: Launch,
    wire.SEGMENT_STATE: State,
    wire.ANTI_DEBUG_READY: AntiDebug,
    wire.MEASURED: Measured,
    wire.ATTEST_CHALLENGE: PodChallenge,
    wire.ATTEST_EVIDENCE: EvidenceMade,
    wire.RELEASE_DENIED: PodDenied,
    wire.RELEASE_PLAN_COMPLETED: Opened,
    wire.TRAIN_STARTED: Started,
    wire.TRAIN_PROGRESS: ProgressMark,
    wire.TRAIN_CHECKPOINT: Checkpoint,
    wire.TRAIN_FINISHED: Finished,
    wire.ADAPTER_SAVED: Saved,
    wire.ADAPTER_SEALED: Sealed,
    wire.ZEROIZE_STARTED: WipeStarted,
    wire.ZEROIZE_SCAN: Scanned,
    wire.ZEROIZE_DONE: WipeDone,
    wire.RUN_CLOSED: PodClosed,
    wire.LOG: Line,
}
PUBLIC: Final[dict[Chain, dict[str, type[_Body]]]] = {"runner": RUNNER, "pod": POD}
_ENCODED: Final = frozenset({"receipt", "token", "attesterKey", "nonce"})  # judged by their own forms
_TYPES: Final = frozenset({"_type", "predicateType"})


def is_public(chain: Chain, event: str, body: dict[str, Any]) -> bool:
    """True when the event has exactly the fields that are published, each in its form, and no text that locates."""
    kind = PUBLIC[chain].get(event)
    if kind is None:
        return False
    try:
        msgspec.convert(body, kind, strict=True)
        signed = unverified_payload(body["receipt"]) if "receipt" in body else {}
    except (msgspec.ValidationError, RefusedError):
        return False
    return all(map(is_public_text, (*_texts(body), *_texts(signed))))


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        shown = {name: inner for name, inner in value.items() if name not in _ENCODED | _TYPES}
        return [text for name, inner in shown.items() for text in (str(name), *_texts(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return []
