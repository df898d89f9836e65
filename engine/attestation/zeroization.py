"""What a zeroization receipt states, and what it takes for it to prove something.

The wipe is what NIST SP 800-88 calls Clear. The scan proves that known byte patterns are absent from the
readable pages of the processes named, and no more.
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
    """Areas of one class that were not read: how many, and their bytes."""

    regions: int
    bytes: int


class Scan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process, or its descriptors, scanned once. `hits` has every pattern class that was looked for.

    `unread_other` lists what was not read outside the allowed classes; anything there spoils the proof.
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
    """A process that held secrets. `gone`: its pid with this start time is no more."""

    role: str
    pid: int
    start_time: int
    gone: bool


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The accelerators afterwards; `present` False and the rest None where there is none.

    `bytes_before` is the memory in use before the first process of the segment was started.
    """

    present: bool
    at_baseline: bool | None = None
    compute_processes: int | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None


class Zeroization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was wiped, and how it was looked for. Scans are by target: key process, trainer, supervisor.

    `before` holds the positive control. `processes_unseen` counts processes of the machine that would not say which
    deleted files they hold. Digests are SHA-256 in hex; `began` and `ended` are UTC.
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


def _read_whole(scan: Scan) -> bool:
    skipped = set(scan.skipped) <= set(ALLOWED_UNREAD)
    return scan.state == "read" and scan.bytes_read > 0 and not scan.unread_other and skipped


def _looked_again(found: Zeroization) -> bool:
    """Every target was scanned again, for every class that was looked for in it."""
    return all(
        target in found.after and set(found.after[target].hits) >= set(scan.hits)
        for target, scan in found.before.items()
    )


def _counts(scans: dict[str, Scan]) -> list[int]:
    return [count for scan in scans.values() for count in scan.hits.values()]


def zeroization_faults(found: Zeroization) -> tuple[str, ...]:
    """The reason codes for which this proves nothing, in a fixed order; empty when it proves zeroization."""
    before, after = _counts(found.before), _counts(found.after)
    control = _hits(found.before)
    device = found.device
    faults = {
        "zeroization_incomplete": not set(control) >= _required(found)
        or not _looked_again(found)
        or not found.processes
        or any(count < 0 for count in (*before, *after)),
        "zeroization_no_control": not control or any(count <= 0 for count in control.values()),
        "zeroization_hits": any(after),
        "zeroization_unread": not all(map(_read_whole, found.after.values())),
        "zeroization_process_alive": not all(process.gone for process in found.processes),
        "zeroization_scratch": not found.scratch_empty,
        "zeroization_deleted_files": found.deleted_files_held != 0,
        "zeroization_device": device.present and not (device.at_baseline and device.compute_processes == 0),
    }
    return tuple(code for code, at_fault in faults.items() if at_fault)


def _required(found: Zeroization) -> set[str]:
    return {*REQUIRED_CLASSES, *(() if found.adapter_sha256 is None else REQUIRED_WITH_ADAPTER)}


def runtime_state(found: Zeroization) -> Literal["zeroized", "unverified"]:
    """`zeroized` only when nothing is at fault."""
    return "unverified" if zeroization_faults(found) else "zeroized"


def zeroization_receipt(found: Zeroization, attester: Ed25519PrivateKey) -> dict[str, Any]:
    """The attester's receipt, whatever it proves."""
    subjects = {"package": found.manifest_sha256, "nonce": found.nonce_sha256, "pod-log": found.pod_head}
    if found.adapter_sha256 is not None:
        subjects["adapter"] = found.adapter_sha256
    return sign(statement(ZEROIZATION, subjects, msgspec.to_builtins(found)), attester)


def read_zeroization(
    envelope: object, publics: bytes | tuple[bytes, ...], *, run_id: str, manifest_sha256: str, nonce_sha256: str
) -> Zeroization:
    """The receipt of this run, package and nonce, signed by exactly `publics`; what it proves is judged
    apart.

    Raises `RefusedError`: `receipt_other_run` (also a replayed one), and as `read_predicate`.
    """
    found, _ = read_predicate(envelope, publics, ZEROIZATION, Zeroization)
    if (found.run_id, found.manifest_sha256, found.nonce_sha256) != (run_id, manifest_sha256, nonce_sha256):
        raise refusal("receipt_other_run")
    return found
