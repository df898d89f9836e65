"""The zeroization receipt as a document: its form, its constants, and how it is signed and read.

The wipe overwrites known buffers; it sanitizes no medium as a whole. The scan proves that known byte patterns are
absent from the readable pages of the named processes, and no more. `wipe_proof` judges what a receipt proves.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from engine.attestation.reasons import refusal
from engine.attestation.receipts import ZEROIZATION
from engine.attestation.statements import RunId, Time, read_predicate, sign, statement
from engine.events import Code, Count, Digest

SANITIZATION: Final = "known buffers overwritten in place, as in NIST SP 800-88 Clear; no medium sanitized as a whole"
METHODS: Final = (
    "keys overwritten, cipher objects dropped, freed memory overwritten",
    "parameters, gradients and moments zeroed in place",
    "payload and adapter memfds overwritten and unmapped",
    "buffers of the maths library freed, free heap and stack below the wipe swept",
)
ABANDONED_METHODS: Final = METHODS[2:3]
"""All that a supervisor can do for processes that ended before they had wiped their own memory."""

Kind = Annotated[str, Meta(pattern=r"^[ -~]{1,64}$(?!\n)")]


class Area(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Memory areas of one class that were not read: their number, and their size in bytes."""

    regions: Count
    bytes: Count


class Unread(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An area of no allowed class that was not read, and why; a descriptor has no permissions."""

    why: Literal["unreadable", "appeared", "short"]
    kind: Kind
    bytes: Count
    permissions: Kind | None = None


class Scan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One scan of a process, or of its descriptors. `hits` has an entry for every pattern class that was searched.

    `where` counts the hits by kind of area. `unread_other` lists areas outside the allowed classes that were not read;
    if it is not empty, nothing is proven.
    """

    state: Literal["read", "gone"]
    bytes_read: Count
    regions_read: Count
    descriptors_read: Count = 0
    hits: dict[Code, Count]
    where: dict[Kind, Count] = {}
    skipped: dict[Code, Area] = {}
    unread_other: list[Unread] = []


class ProcessEnd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process that held secrets. `gone`: no process with this pid and start time exists any more."""

    role: Kind
    pid: Count
    start_time: Count
    gone: bool


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The accelerators after the wipe; without any, `present` is False and the rest None.

    `bytes_before` is the memory in use before the first process of the segment was started.
    """

    present: bool
    at_baseline: bool | None = None
    compute_processes: Count | None = None
    bytes_before: Count | None = None
    bytes_after: Count | None = None


class Zeroization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was wiped, and what the scans found. Scans are keyed by target (`wipe_proof.TARGETS`).

    `before` is the positive control. `processes_unseen` counts processes of the machine whose deleted files could not
    be listed. `pod_head` is the head of the allocation's log just before the receipt is logged. Digests are SHA-256 in
    hex; `began` and `ended` are UTC.
    """

    run_id: RunId
    segment: Literal["protected"]
    manifest_sha256: Digest
    nonce_sha256: Digest
    adapter_sha256: Digest | None
    methods: list[str]
    before: dict[Kind, Scan]
    after: dict[Kind, Scan]
    processes: list[ProcessEnd]
    scratch_empty: bool
    deleted_files_held: Count
    processes_unseen: Count = 0
    device: Device
    pod_head: Digest
    began: Time
    ended: Time
    sanitization: str = SANITIZATION


def subjects_of(body: Zeroization) -> dict[str, str]:
    """The subjects of the receipt's statement: everything that it is about, by name."""
    subjects = {"package": body.manifest_sha256, "nonce": body.nonce_sha256, "pod-log": body.pod_head}
    return subjects if body.adapter_sha256 is None else {**subjects, "adapter": body.adapter_sha256}


def zeroization_receipt(body: Zeroization, attester: Ed25519PrivateKey) -> dict[str, Any]:
    """The attester's signed receipt, whether or not it proves zeroization."""
    return sign(statement(ZEROIZATION, subjects_of(body), msgspec.to_builtins(body)), attester)


def read_zeroization(
    envelope: object, publics: bytes | tuple[bytes, ...], *, run_id: str, manifest_sha256: str, nonce_sha256: str
) -> Zeroization:
    """The receipt of this run, package and nonce, signed by exactly `publics`; `zeroization_faults` tells what it
    proves.

    Raises `RefusedError`: `receipt_other_run` (also a replayed one), `predicate_malformed` (also for other subjects),
    and as `read_predicate`.
    """
    receipt, subjects = read_predicate(envelope, publics, ZEROIZATION, Zeroization)
    if subjects != subjects_of(receipt):
        raise refusal("predicate_malformed", "its subjects are not those of its content")
    if (receipt.run_id, receipt.manifest_sha256, receipt.nonce_sha256) != (run_id, manifest_sha256, nonce_sha256):
        raise refusal("receipt_other_run")
    return receipt
