"""The public artifact: a row under its published field names, together with the signed bundle that proves it.

One JSON document (`data/schemas/artifact.schema.json`, generated from the structs and their docstrings). The row's
fields are at the top level; `format` names the version; `bundle` contains what was signed and logged, or is null for
an unsigned row.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engine.attestation.reasons import refusal
from engine.errors import RefusedError, WireError
from engine.events import Code, Count, Digest
from engine.measure.series import pack_series, unpack_series
from engine.store.progress import LOSS_BYTES, NANO_BYTES, Steps, body_of, unpack_losses, unpack_nanos
from engine.store.views import CheckStatus, CleanupState, Series
from engine.wire import GENESIS, TRAIN_PROGRESS, Event, committed, event_hash, parse, sha256_hex

FORMAT: Final = "glasshouse-row/3"
MAX_ARTIFACT_BYTES: Final = 32 * 1024 * 1024
"""Two segments of some 1.5 million steps each, and their logs. A text of it takes up to four times as much decoded."""
MAX_STEPS: Final = 2_000_000
SERIES: Final = "series"
_ANY_FORMAT: Final = re.compile(r"glasshouse-row/\d{1,6}")
_BASE64: Final = r"^[A-Za-z0-9+/]*={0,2}$(?!\n)"

Label = Annotated[str, Meta(max_length=80)]
Text = Annotated[str, Meta(max_length=512)]
Answer = Annotated[str, Meta(max_length=256)]
Time = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$(?!\n)")]
Seconds = Annotated[float, Meta(ge=0)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Cleanup(_Part, frozen=True, kw_only=True):
    """How many allocations of this run, and foreign ones, the provider still listed afterwards; null is unknown."""

    active_run_pod_pods_after_run: Count | None
    other_active_pods: Count | None


class RowCheck(_Part, frozen=True, kw_only=True):
    """One check of a verdict."""

    name: Code
    group: Literal["lifecycle", "model_artifact"]
    status: CheckStatus
    reason: Text


class RowSegment(_Part, frozen=True, kw_only=True):
    """One segment; times in seconds.

    `updates` are the optimiser's steps, settling steps included; `samples_used` what they were computed from, each time
    that a sample was used; `epochs` how often that is all of the data. `held_out_loss_…`: the mean loss of the tokens
    that are learned in the held-out samples, before the settling steps and after the measured window.
    """

    kind: Literal["raw", "protected"]
    position: Count
    state: Code
    reason: Text
    stop_reason: Code | None
    steps: Count
    updates: Count | None
    samples_used: Count | None
    epochs: Seconds | None
    elapsed_sec: Seconds | None
    steps_per_second: Seconds | None
    last_loss: float | None
    final_loss: float | None
    adapter_sha256: Digest | None
    tensor_digest: Digest | None
    held_out_loss_before: float | None
    held_out_loss_after: float | None
    answer_before: Answer | None
    answer_after: Answer | None
    phases: dict[Code, float]


class Row(_Part, frozen=True, kw_only=True):
    """The row's fields and their types; null is unknown. Times are UTC, losses and percentages plain numbers.

    `samples_…` and `answer_tokens…` say what became of the data, `uniform_loss` is the loss of guessing, and `diverged`
    that a segment ended above it. `answer_…` answer `question`, by the protected segment where there is one.
    """

    id: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$(?!\n)")]
    label: Label
    provider: Code
    gpu_model: Text | None
    model: Text
    model_revision: Annotated[str, Meta(pattern=r"^[0-9a-f]{40}$(?!\n)")] | None
    order: Literal["raw-first", "protected-first"] | None
    target_sec: Seconds | None
    step_budget: Count | None
    raw_elapsed_sec: Seconds | None
    raw_steps: Count | None
    raw_updates: Count | None
    raw_samples_used: Count | None
    raw_epochs: Seconds | None
    raw_final_loss: float | None
    raw_stop_reason: Code | None
    raw_adapter_sha256: Digest | None
    raw_tensor_digest: Digest | None
    protected_elapsed_sec: Seconds | None
    protected_steps: Count | None
    protected_updates: Count | None
    protected_samples_used: Count | None
    protected_epochs: Seconds | None
    protected_final_loss: float | None
    protected_stop_reason: Code | None
    protected_adapter_sha256: Digest | None
    protected_tensor_digest: Digest | None
    overhead_pct: float | None
    overhead_ci95: tuple[float, float] | None
    overhead_precision_pct: float | None
    timing_slack_pct: Seconds | None
    noise_floor_pct: float | None
    verdict: Text | None
    attestation: Code
    tier: Code | None
    ear_status: Code | None
    reason_codes: list[Code]
    enforcement: dict[Code, Text] | None
    key_state: Code
    runtime_state: Code
    same_allocation: bool | None
    cleanup: Cleanup
    cleanup_state: CleanupState
    phases: dict[Literal["raw", "protected"], dict[Code, float]]
    cost_usd: Seconds | None
    started_at: Time | None
    finished_at: Time | None
    duration_sec: Seconds | None
    state: Code
    reason: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.]{0,64}$(?!\n)")]
    version: Code
    plan_digest: Digest
    data_digest: Digest | None
    data_samples: Count | None
    samples_used: Count | None
    samples_dropped: Count | None
    samples_cut: Count | None
    answer_tokens: Count | None
    answer_tokens_kept: Count | None
    held_out_samples: Count | None
    uniform_loss: Seconds | None
    diverged: bool | None
    question: Text | None
    raw_held_out_loss_before: float | None
    raw_held_out_loss_after: float | None
    protected_held_out_loss_before: float | None
    protected_held_out_loss_after: float | None
    answer_before: Answer | None
    answer_after: Answer | None
    seed: Count
    challenge: Text | None
    inject_overhead_pct: Seconds
    clean: bool
    checks: list[RowCheck]
    segments: list[RowSegment]
    note: Text


class Entry(_Part, frozen=True, kw_only=True):
    """One event of a log. `prev` is the hash of the previous one (64 zeros for the first), `run_id` the row's id.

    `body` is what the hash covers: for `log` and `train.progress` it has digests in place of what is left out.
    """

    seq: Count
    ts: Time
    event: Annotated[str, Meta(pattern=r"^[a-z_]+(\.[a-z_]+)?$(?!\n)")]
    hash: Digest
    body: dict[str, Any]


class Logs(_Part, frozen=True, kw_only=True):
    """Both event logs."""

    runner: list[Entry]
    pod: list[Entry]


class Heads(_Part, frozen=True, kw_only=True):
    """The hash of each log's last event."""

    runner: Digest
    pod: Digest


class Blob(_Part, frozen=True, kw_only=True):
    """A segment's series: losses (float32) and step times (uint64 ns) as `engine.measure.series` packs them.

    `sha256` is over the packed bytes, which `data` contains in base64.
    """

    steps: Count
    sha256: Digest
    data: Annotated[str, Meta(pattern=_BASE64)]


class Receipts(_Part, frozen=True, kw_only=True):
    """DSSE envelopes of in-toto statements; null if the run did not get that far."""

    release: dict[str, Any] | None
    zeroization: dict[str, Any] | None
    run: dict[str, Any]


class Bundle(_Part, frozen=True, kw_only=True):
    """What was signed and logged. `operator` is the raw public signing key in hex. `evidence` is an EAT that the
    attester signed, `result` an EAR that the run's key signed, both as JWT.

    `left_out` is empty, or names the series if the artifact is a summary.
    """

    operator: Digest
    delegation: dict[str, Any]
    plan: dict[str, Any]
    policy: dict[str, Any] | None
    lock: dict[str, str] | None
    challenge: dict[str, Any] | None
    evidence: str | None
    result: str | None
    receipts: Receipts
    logs: Logs
    heads: Heads
    series: dict[Literal["raw", "protected"], Blob] | None
    left_out: list[Literal["series"]]


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed artifact. `row` is the row exactly as it was signed."""

    row: dict[str, Any]
    bundle: Bundle | None


def malformed(why: str) -> RefusedError:
    """The refusal of a document that is not a valid artifact."""
    return refusal("artifact_malformed", why)


def parse_artifact(text: bytes) -> Artifact:
    """Parse an artifact; raises `RefusedError` (`artifact_malformed`, `artifact_version`)."""
    if len(text) > MAX_ARTIFACT_BYTES:
        raise malformed("it is larger than the limit")
    try:
        raw = parse(text)
    except WireError as error:
        raise malformed(error.message.rstrip(".").lower()) from error
    stated = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(stated, str) and stated != FORMAT and _ANY_FORMAT.fullmatch(stated):
        raise refusal("artifact_version", f"it states {stated}, and this version checks {FORMAT}")
    if not isinstance(raw, dict) or stated != FORMAT or "bundle" not in raw:
        raise malformed(f"it lacks the format {FORMAT}")
    row = {name: value for name, value in raw.items() if name not in ("format", "bundle")}
    try:
        bundle = msgspec.convert(raw["bundle"], Bundle | None, strict=True)
        if bundle is not None:
            msgspec.convert(row, Row, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise malformed(str(error)[:200]) from error
    return Artifact(row=row, bundle=bundle)


def dump_artifact(artifact: Artifact) -> dict[str, Any]:
    """The artifact as one JSON-ready document, the row's fields first, in the order of `Row`."""
    places = {name: place for place, name in enumerate(Row.__struct_encode_fields__)}
    row = sorted(artifact.row.items(), key=lambda item: places.get(item[0], len(places)))
    return {"format": FORMAT, **dict(row), "bundle": msgspec.to_builtins(artifact.bundle)}


def packed(series: Series) -> Blob:
    """A segment's series for the artifact."""
    import numpy as np

    blob = pack_series(np.array(series.losses, dtype="<f4"), np.array(series.nanos, dtype="<u8"))
    return Blob(steps=len(series.losses), sha256=sha256_hex(blob), data=base64.b64encode(blob).decode())


def unpacked(blob: Blob, most: int = MAX_STEPS) -> Series:
    """The inverse of `packed`, for `most` steps at most.

    Raises `RefusedError` (`artifact_malformed`), and `series_mismatch` for more steps before any is inflated.
    """
    if blob.steps > most:
        raise refusal("series_mismatch", f"it has {blob.steps} steps, and log and plan allow {most}")
    try:
        raw = base64.b64decode(blob.data, validate=True)
        if sha256_hex(raw) != blob.sha256 or base64.b64encode(raw).decode() != blob.data:
            raise malformed("a series has another digest than it states")
        losses, nanos = unpack_series(raw, max_steps=blob.steps)
    except (binascii.Error, WireError) as error:
        raise malformed("a series is damaged") from error
    if len(losses) != blob.steps:
        raise malformed("a series has another length than it states")
    return Series(losses=unpack_losses(losses.tobytes()), nanos=unpack_nanos(nanos.tobytes()))


def logged_steps(log: list[Event]) -> dict[str, int]:
    """By segment, how many steps the progress events of a log bring."""
    reached: dict[str, int] = {}
    for event in log:
        kind, last = event.body.get("segment"), event.body.get("to")
        if event.event == TRAIN_PROGRESS and isinstance(kind, str) and type(last) is int:
            reached[kind] = max(last, reached.get(kind, 0))
    return reached


def events_of(entries: list[Entry], run_id: str) -> list[Event]:
    """The events of a log, each with the body that its hash covers."""
    events = []
    prev = GENESIS
    for entry in entries:
        events.append(
            Event(
                seq=entry.seq,
                prev=prev,
                ts=entry.ts,
                event=entry.event,
                run_id=run_id,
                body=entry.body,
                hash=entry.hash,
            )
        )
        prev = entry.hash
    return events


def is_whole(log: list[Event]) -> bool:
    """True when every event of `events_of` has the correct number, link and hash, from the first one on."""
    return bool(log) and all(
        event.seq == place
        and event.hash == event_hash(event.seq, event.prev, event.ts, event.event, event.run_id, event.body)
        for place, event in enumerate(log)
    )


def check_steps(log: list[Event], series: Mapping[str, Series]) -> None:
    """Check that the progress events of a log contain exactly these series, in order and without a gap.

    Raises `RefusedError` (`series_mismatch`).
    """
    import numpy as np

    reached = dict.fromkeys(series, 0)
    raw = {
        kind: (np.array(one.losses, dtype="<f4").tobytes(), np.array(one.nanos, dtype="<u8").tobytes())
        for kind, one in series.items()
    }
    for event in log:
        if event.event != TRAIN_PROGRESS:
            continue
        kind, first, last = str(event.body["segment"]), int(event.body["from"]), int(event.body["to"])
        if reached.get(kind) != first or not first <= last <= len(series[kind].losses):
            raise refusal("series_mismatch", "a progress event does not continue it")
        losses, nanos = raw[kind]
        part = (losses[LOSS_BYTES * first : LOSS_BYTES * last], nanos[NANO_BYTES * first : NANO_BYTES * last])
        if committed(TRAIN_PROGRESS, body_of(Steps(kind, first, *part))) != event.body:
            raise refusal("series_mismatch", "a progress event brought other steps")
        reached[kind] = last
    if any(reached[kind] != len(one.losses) for kind, one in series.items()):
        raise refusal("series_mismatch", "it has steps that the log lacks")
