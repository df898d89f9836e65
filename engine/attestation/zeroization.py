"""What a zeroization receipt states, and when it proves zeroization.

The wipe is what NIST SP 800-88 calls Clear. The scan proves that known byte patterns are absent from the readable pages
of the named processes, and no more.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.reasons import refusal
from engine.attestation.receipts import ZEROIZATION
from engine.attestation.statements import read_predicate, sign, statement

SANITIZATION: Final = "NIST SP 800-88 Clear"
REQUIRED_CLASSES: Final = (
    "content_key",
    "content_key_half",
    "release_key",
    "release_key_half",
    "canary_row",
    "adapter",
    "moments",
)
# A segment that sealed an adapter had a key for it.
REQUIRED_WITH_ADAPTER: Final = ("adapter_key", "adapter_key_half")
ALLOWED_UNREAD: Final = (
    "vvar",
    "vvar_vclock",
    "vsyscall",
    "guard",
    "device",
    "clean_file",
    "memfd_secret",
    "descriptor",
)


class Area(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Memory areas of one class that were not read: their number, and their size in bytes."""

    regions: int
    bytes: int


class Scan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One scan of a process, or of its descriptors. `hits` has an entry for every pattern class that was searched.

    `unread_other` lists areas outside the allowed classes that were not read; if it is not empty, nothing is proven.
    """

    state: str
    bytes_read: int
    regions_read: int
    descriptors_read: int = 0
    hits: dict[str, int]
    where: dict[str, int] = {}
    skipped: dict[str, Area] = {}
    unread_other: list[dict[str, Any]] = []


class ProcessEnd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process that held secrets. `gone`: no process with this pid and start time exists any more."""

    role: str
    pid: int
    start_time: int
    gone: bool


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The accelerators after the wipe; without any, `present` is False and the rest None.

    `bytes_before` is the memory in use before the first process of the segment was started.
    """

    present: bool
    at_baseline: bool | None = None
    compute_processes: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None


class Zeroization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was wiped, and what the scans found. Scans are keyed by target: key process, trainer, supervisor.

    `before` is the positive control. `processes_unseen` counts processes of the machine whose deleted files could not
    be listed. Digests are SHA-256 in hex; `began` and `ended` are UTC.
    """

    run_id: str
    segment: str
    manifest_sha256: str
    nonce_sha256: str
    adapter_sha256: str | None
    methods: list[str]
    before: dict[str, Scan]
    after: dict[str, Scan]
    processes: list[ProcessEnd]
    scratch_empty: bool
    deleted_files_held: int
    processes_unseen: int = 0
    device: Device
    pod_head: str
    began: str
    ended: str
    sanitization: str = SANITIZATION


def _hits(scans: dict[str, Scan]) -> dict[str, int]:
    total: dict[str, int] = {}
    for scan in scans.values():
        for name, count in scan.hits.items():
            total[name] = total.get(name, 0) + count
    return total


def _is_complete(scan: Scan) -> bool:
    skips_are_allowed = set(scan.skipped) <= set(ALLOWED_UNREAD)
    return scan.state == "read" and scan.bytes_read > 0 and not scan.unread_other and skips_are_allowed


def _is_scanned_again(receipt: Zeroization) -> bool:
    """Every target was scanned again after the wipe, for every class that was searched in it before."""
    return all(
        target in receipt.after and set(receipt.after[target].hits) >= set(scan.hits)
        for target, scan in receipt.before.items()
    )


def _counts(scans: dict[str, Scan]) -> list[int]:
    return [count for scan in scans.values() for count in scan.hits.values()]


def zeroization_faults(receipt: Zeroization) -> tuple[str, ...]:
    """The reason codes why this does not prove zeroization, in a fixed order; empty if it does."""
    before, after = _counts(receipt.before), _counts(receipt.after)
    control = _hits(receipt.before)
    device = receipt.device
    faults = {
        "zeroization_incomplete": not set(control) >= _required_classes(receipt)
        or not _is_scanned_again(receipt)
        or not receipt.processes
        or any(count < 0 for count in (*before, *after)),
        "zeroization_no_control": not control or any(count <= 0 for count in control.values()),
        "zeroization_hits": any(after),
        "zeroization_unread": not all(map(_is_complete, receipt.after.values())),
        "zeroization_process_alive": not all(process.gone for process in receipt.processes),
        "zeroization_scratch": not receipt.scratch_empty,
        "zeroization_deleted_files": receipt.deleted_files_held != 0,
        "zeroization_device": device.present and not (device.at_baseline and device.compute_processes == 0),
    }
    return tuple(code for code, applies in faults.items() if applies)


def _required_classes(receipt: Zeroization) -> set[str]:
    return {*REQUIRED_CLASSES, *(() if receipt.adapter_sha256 is None else REQUIRED_WITH_ADAPTER)}


def runtime_state(receipt: Zeroization) -> Literal["zeroized", "unverified"]:
    """`zeroized` only if the receipt has no faults."""
    return "unverified" if zeroization_faults(receipt) else "zeroized"


def zeroization_receipt(body: Zeroization, attester: Ed25519PrivateKey) -> dict[str, Any]:
    """The attester's signed receipt, whether or not it proves zeroization."""
    subjects = {"package": body.manifest_sha256, "nonce": body.nonce_sha256, "pod-log": body.pod_head}
    if body.adapter_sha256 is not None:
        subjects["adapter"] = body.adapter_sha256
    return sign(statement(ZEROIZATION, subjects, msgspec.to_builtins(body)), attester)


def read_zeroization(
    envelope: object, publics: bytes | tuple[bytes, ...], *, run_id: str, manifest_sha256: str, nonce_sha256: str
) -> Zeroization:
    """The receipt of this run, package and nonce, signed by exactly `publics`; `zeroization_faults` tells what it
    proves.

    Raises `RefusedError`: `receipt_other_run` (also a replayed one), and as `read_predicate`.
    """
    receipt, _ = read_predicate(envelope, publics, ZEROIZATION, Zeroization)
    if (receipt.run_id, receipt.manifest_sha256, receipt.nonce_sha256) != (run_id, manifest_sha256, nonce_sha256):
        raise refusal("receipt_other_run")
    return receipt
