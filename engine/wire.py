"""The vocabulary shared with the allocation: canonical JSON (RFC 8785), events and their hash chain.

A log is a file of canonical JSON lines. Each line names its predecessor's hash, so that a dropped, reordered or edited
line is noticed by anyone who has a later hash. Of `log` lines and of the steps in `train.progress` the hash covers a
digest only (`committed`), so that a chain can be checked without them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import rfc8785

from engine.errors import WireError
from engine.system.clock import utc

GENESIS: Final = "0" * 64
MAX_LINE_BYTES: Final = 256 * 1024
MAX_LOG_BYTES: Final = 256 * 1024 * 1024
MAX_MARKS: Final = 1_500_000
"""Most commas, colons and opening brackets in a JSON text: with every value parsed, some 200 MB in the worst case."""
MAX_DEPTH: Final = 64

# Event names. The first three come from the published work.
ANTI_DEBUG_READY: Final = "enclave.anti_debug_ready"
MEASURED: Final = "enclave.measured"
RELEASE_PLAN_COMPLETED: Final = "enclave.release_plan_completed"
PACKAGE_SEALED: Final = "package.sealed"
LAUNCH_ACCEPTED: Final = "launch.accepted"
SEGMENT_STATE: Final = "segment.state"
ATTEST_CHALLENGE: Final = "attest.challenge"
ATTEST_EVIDENCE: Final = "attest.evidence"
ATTEST_RESULT: Final = "attest.result"
RELEASE_DENIED: Final = "release.denied"
RELEASE_GRANTED: Final = "release.granted"
TRAIN_STARTED: Final = "train.started"
TRAIN_PROGRESS: Final = "train.progress"
TRAIN_EVALUATED: Final = "train.evaluated"
TRAIN_CHECKPOINT: Final = "train.checkpoint"
TRAIN_MEASURED: Final = "train.measured"
TRAIN_FINISHED: Final = "train.finished"
TRAIN_OBSERVED: Final = "train.observed"
ADAPTER_SEALED: Final = "adapter.sealed"
ADAPTER_SAVED: Final = "adapter.saved"
ZEROIZE_STARTED: Final = "zeroize.started"
ZEROIZE_SCAN: Final = "zeroize.scan"
ZEROIZE_DONE: Final = "zeroize.done"
ADAPTER_COLLECTED: Final = "adapter.collected"
ALLOCATION_GONE: Final = "allocation.gone"
RUN_CLOSED: Final = "run.closed"
LOG: Final = "log"

STEPS: Final = ("losses", "nanos")
"""The fields of `train.progress` that hold its steps."""


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a log.

    `seq` counts from 0; `prev` and `hash` are SHA-256 in hex; `ts` is UTC with milliseconds (RFC 3339).
    """

    seq: int
    prev: str
    ts: str
    event: str
    run_id: str
    body: dict[str, Any]
    hash: str


def canonical(value: object) -> bytes:
    """The canonical JSON (RFC 8785) of `value`; raises `WireError` for NaN, infinities and unknown types."""
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:  # keys with lone surrogates
        raise WireError(f"This value has no canonical JSON: {error}.", code="json_not_canonical") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise WireError("A JSON object contains the same key twice.", code="json_duplicate_key")
    return result


def _no_constants(name: str) -> Any:
    raise WireError(f"{name} is not valid JSON.", code="json_not_finite")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise WireError("A JSON number is too large.", code="json_not_finite")
    return value


_STRINGS: Final = re.compile(
    rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL
)  # one left open too: no second try from inside it
_BRACKETS: Final = bytes.maketrans(b"[{]}", b"(())")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[{]}"))


def parse(text: bytes | str) -> Any:
    """Parse JSON strictly: UTF-8 only, no duplicate keys, no lone surrogates, no NaN or infinity (`1e999` included).

    A text of more than `MAX_MARKS` values or nested more than `MAX_DEPTH` deep is refused before any of it is decoded.
    Raises `WireError` (`json_invalid`, `json_duplicate_key`, `json_not_finite`, `json_too_large`, `json_too_deep`).
    """
    try:
        raw = text.encode("utf-8") if isinstance(text, str) else text
        require_bounded(raw)
        plain = raw.decode("utf-8")
        value = json.loads(plain, object_pairs_hook=_no_duplicates, parse_constant=_no_constants, parse_float=_finite)
        if "\\ud" in plain or "\\uD" in plain:
            _refuse_lone_surrogates(value)
    except (ValueError, RecursionError) as error:
        raise WireError("This is not JSON.", code="json_invalid") from error
    else:
        return value


def require_bounded(raw: bytes) -> None:
    """Raise `WireError` for more values or levels than any document of ours has; takes time linear in the text.

    Each value costs up to hundreds of bytes of memory once it is decoded, and each level a stack frame.
    """
    # Marks inside strings count too: the result is an upper bound, and no document of ours comes near the limit.
    if sum(map(raw.count, (b",", b":", b"[", b"{"))) > MAX_MARKS or raw.count(b'"') > 4 * MAX_MARKS:
        raise WireError("This JSON has more values than the limit.", code="json_too_large")
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRINGS.sub(b"", raw).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"()", b"")  # one round removes the innermost level
    if b"()" in brackets or brackets.count(b"(") > MAX_DEPTH:
        raise WireError("This JSON is nested more deeply than the limit.", code="json_too_deep")


def _refuse_lone_surrogates(value: Any) -> None:
    """Raise `ValueError` for a lone surrogate in any text: other JSON parsers refuse them."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict):
        for name, inner in value.items():
            name.encode("utf-8")
            _refuse_lone_surrogates(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_lone_surrogates(inner)


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """SHA-256 in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def digest_of(value: object) -> str:
    """SHA-256 in hex over the canonical JSON of `value`."""
    return sha256_hex(canonical(value))


def utc_text(at: datetime) -> str:
    """A moment in UTC, RFC 3339 with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_now() -> str:
    """UTC now, as `utc_text` writes it."""
    return utc_text(utc())


def committed(event: str, body: dict[str, Any]) -> dict[str, Any]:
    """The part of an event's body that its hash covers: all of it, with digests for what an export may leave out.

    Those are `log` lines and the steps of `train.progress`. So the chain, with every name, time and position in it, can
    be checked by somebody who has neither.
    """
    if event == LOG:
        return {"sha256": digest_of(body)}
    if event == TRAIN_PROGRESS:
        left_out = {name: body.get(name) for name in STEPS}
        return {name: value for name, value in body.items() if name not in STEPS} | {"sha256": digest_of(left_out)}
    return body


def event_hash(seq: int, prev: str, ts: str, event: str, run_id: str, covered: dict[str, Any]) -> str:
    """SHA-256 in hex over an event; `covered` is its body as `committed` returns it."""
    return digest_of({"seq": seq, "prev": prev, "ts": ts, "event": event, "run_id": run_id, "body": covered})


def _hash(seq: int, prev: str, ts: str, event: str, run_id: str, body: dict[str, Any]) -> str:
    return event_hash(seq, prev, ts, event, run_id, committed(event, body))


def to_line(event: Event) -> bytes:
    """The log line of an event, newline included."""
    return canonical(msgspec.to_builtins(event)) + b"\n"


class ChainWriter:
    """Creates the events of one log, each linked to the previous one."""

    def __init__(self, run_id: str, *, head: str = GENESIS, next_seq: int = 0) -> None:
        self.run_id = run_id
        self.head = head
        self.next_seq = next_seq

    def append(self, event: str, body: dict[str, Any], *, ts: str | None = None) -> Event:
        """The next event; advances `head`."""
        ts = ts or utc_now()
        digest = _hash(self.next_seq, self.head, ts, event, self.run_id, body)
        created = Event(
            seq=self.next_seq, prev=self.head, ts=ts, event=event, run_id=self.run_id, body=body, hash=digest
        )
        self.head = digest
        self.next_seq += 1
        return created


class ChainReader:
    """Accepts the lines of one log in order and refuses the first that does not continue the chain."""

    def __init__(self, run_id: str, *, head: str = GENESIS, next_seq: int = 0) -> None:
        self.run_id = run_id
        self.head = head
        self.next_seq = next_seq

    def feed(self, line: bytes) -> Event:
        """Check one line (without or with its newline) against the chain; raises `WireError` (`log_*` codes)."""
        if len(line) > MAX_LINE_BYTES:
            raise WireError("A log line is longer than the limit.", code="log_line_too_long")
        raw = parse(line)
        try:
            event = msgspec.convert(raw, Event, strict=True)
        except msgspec.ValidationError as error:
            raise WireError("A log line is not a valid event.", code="log_line_invalid") from error
        self.check(event)
        return event

    def check(self, event: Event) -> None:
        """Check a parsed event and advance; raises `WireError` if it does not continue the chain."""
        if event.run_id != self.run_id:
            raise WireError("A log line belongs to another run.", code="log_other_run")
        if event.seq != self.next_seq or event.prev != self.head:
            raise WireError("The log's chain is broken: a line is missing or out of order.", code="log_chain_broken")
        if event.hash != _hash(event.seq, event.prev, event.ts, event.event, event.run_id, event.body):
            raise WireError("A log line was changed after it was written.", code="log_hash_wrong")
        self.head = event.hash
        self.next_seq += 1
