"""What a zeroization receipt proves: every field of it is held against what this run must have.

Two kinds of fault. A *contradiction* is a statement that an honest worker of this run cannot make: such a receipt is
never countersigned, and no artifact with it is genuine. Anything else that is missing or found is *unproven*: an honest
worker reports it, the receipt is kept as evidence of the failure, and the runtime stays `unverified`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple

import msgspec

from engine.attestation.policy import Policy
from engine.attestation.zeroization import ABANDONED_METHODS, METHODS, SANITIZATION, Scan, Zeroization

KEYPROC_OPEN: Final = "keyproc open"
KEYPROC_SEAL: Final = "keyproc seal"
TRAINER: Final = "trainer"
SUPERVISOR: Final = "supervisor"
SCANNER: Final = "scanner"
PAYLOAD: Final = "payload"

_RELEASED: Final = ("content_key", "content_key_half", "release_key", "release_key_half")
_SEALING: Final = ("adapter_key", "adapter_key_half")
_TRAINED: Final = ("canary_row", "adapter", "moments")
WEIGHTS: Final = "weights"
REQUIRED_CLASSES: Final = (*_RELEASED, *_SEALING, *_TRAINED)

MIB: Final = 1024 * 1024


class Needs(NamedTuple):
    """What a scan of one target must have read and found at least.

    `floor` is far below what honest runs read: the smallest seen, on x86-64 with Python 3.11 and no torch, were 17 MiB
    for a key process, 16 for a trainer, 58 for the supervisor and 15 for the scanner.
    """

    floor: int
    """Bytes; of `PAYLOAD` the adapter's size in addition."""
    regions: int
    control: tuple[str, ...]
    """Classes that must be found in this target before the wipe."""
    searched: tuple[str, ...]
    """Classes that must be searched after the wipe: everything that any process could have held by then."""


TARGETS: Final[dict[str, Needs]] = {
    KEYPROC_OPEN: Needs(4 * MIB, 32, _RELEASED, _RELEASED),
    KEYPROC_SEAL: Needs(4 * MIB, 32, _SEALING, (*_RELEASED, *_SEALING)),
    TRAINER: Needs(8 * MIB, 32, _TRAINED, REQUIRED_CLASSES),
    SUPERVISOR: Needs(8 * MIB, 32, (), REQUIRED_CLASSES),
    SCANNER: Needs(4 * MIB, 32, (), REQUIRED_CLASSES),
    PAYLOAD: Needs(1, 0, ("adapter", "canary_row"), REQUIRED_CLASSES),
}
ROLES: Final = (KEYPROC_OPEN, KEYPROC_SEAL, TRAINER, SCANNER)
"""The processes that must have ended. The supervisor lives on to sign the receipt."""

_PAGE: Final = 64 * 1024  # the largest page size of the supported machines
_SHORTEST: Final = 16  # bytes of the shortest pattern


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What the receipt of one run must agree with: the operator's policy, and the log around the receipt.

    `adapter_sha256` and `adapter_size` (bytes) are those of the sealed adapter, None and 0 if none was sealed;
    `secret_weights`: the package contained the weights; `gpu`: the launch named one; `launched` and `logged` (UTC) are
    the times of the segment's launch and of the event with the receipt, `pod_head` the head before that event.
    """

    policy: Policy
    adapter_sha256: str | None
    adapter_size: int
    secret_weights: bool
    gpu: bool
    launched: str
    logged: str
    pod_head: str


def contradictions(receipt: Zeroization, expected: Expected) -> tuple[str, ...]:
    """The codes of statements that an honest worker of this run cannot make, in a fixed order."""
    found = {
        "zeroization_other_log": (receipt.adapter_sha256, receipt.pod_head)
        != (expected.adapter_sha256, expected.pod_head),
        "zeroization_constants": receipt.sanitization != SANITIZATION
        or tuple(receipt.methods) not in (METHODS, ABANDONED_METHODS),
        "zeroization_targets": not (set(receipt.before) | set(receipt.after)) <= set(TARGETS),
        "zeroization_roles": _has_wrong_roles(receipt),
        "zeroization_times": not _in_order(receipt, expected),
        "zeroization_counts": not all(
            _is_consistent(scan, scans) for scans in (receipt.before, receipt.after) for scan in scans.values()
        ),
        "zeroization_device_missing": _hides_device(receipt, expected),
    }
    return tuple(code for code, applies in found.items() if applies)


def zeroization_faults(receipt: Zeroization, expected: Expected) -> tuple[str, ...]:
    """The reason codes why this does not prove zeroization, in a fixed order; empty if it does."""
    scans = [*receipt.before.items(), *receipt.after.items()]
    device = receipt.device
    unproven = {
        "zeroization_incomplete": _is_incomplete(receipt, expected),
        "zeroization_no_control": not _has_control(receipt, expected),
        "zeroization_hits": any(count for scan in receipt.after.values() for count in scan.hits.values()),
        "zeroization_unread": not all(_is_complete(scan, expected) for _, scan in scans),
        "zeroization_short": any(_is_short(target, scan, expected) for target, scan in scans),
        "zeroization_unseen": receipt.processes_unseen > expected.policy.max_processes_unseen,
        "zeroization_process_alive": not all(process.gone for process in receipt.processes),
        "zeroization_scratch": not receipt.scratch_empty,
        "zeroization_deleted_files": receipt.deleted_files_held != 0,
        "zeroization_device": device.present
        and not (device.at_baseline and device.compute_processes == 0 and device.bytes_before is not None),
    }
    return (*contradictions(receipt, expected), *(code for code, applies in unproven.items() if applies))


def runtime_state(receipt: Zeroization, expected: Expected) -> Literal["zeroized", "unverified"]:
    """`zeroized` only if the receipt has no faults."""
    return "unverified" if zeroization_faults(receipt, expected) else "zeroized"


def searched_after(target: str, expected: Expected) -> set[str]:
    """The classes that a scan of this target after the wipe must have searched."""
    needs = TARGETS[target]
    with_weights = expected.secret_weights and WEIGHTS not in needs.searched and "adapter" in needs.searched
    return {*needs.searched, *((WEIGHTS,) if with_weights else ())}


def _is_incomplete(receipt: Zeroization, expected: Expected) -> bool:
    """Whether a target, a process, a class, a method or the adapter is missing."""
    return (
        expected.adapter_sha256 is None
        or tuple(receipt.methods) != METHODS
        or set(receipt.before) != set(TARGETS)
        or set(receipt.after) != set(TARGETS)
        or {process.role for process in receipt.processes} != set(ROLES)
        or any(
            set(scan.hits) != searched_after(target, expected)
            for target, scan in receipt.after.items()
            if target in TARGETS
        )
    )


def _has_control(receipt: Zeroization, expected: Expected) -> bool:
    """Whether every class was found before the wipe, in each target that must have held it."""
    found = {
        name
        for target, scan in receipt.before.items()
        for name, count in scan.hits.items()
        if count and target in TARGETS
    }
    needed = {*REQUIRED_CLASSES, *((WEIGHTS,) if expected.secret_weights else ())}
    return found >= needed and all(
        receipt.before[target].hits.get(name, 0) > 0
        for target, needs in TARGETS.items()
        if target in receipt.before
        for name in needs.control
    )


def _is_complete(scan: Scan, expected: Expected) -> bool:
    """Whether everything was read, except what the policy lets a scan leave unread."""
    allowed = expected.policy.max_unread_bytes
    return (
        scan.state == "read"
        and not scan.unread_other
        and all(area.bytes <= allowed.get(name, -1) for name, area in scan.skipped.items())
        and (expected.gpu or "device" not in scan.skipped)
    )


def _is_short(target: str, scan: Scan, expected: Expected) -> bool:
    """Whether a scan read less than such a target has."""
    needs = TARGETS.get(target)
    if needs is None:
        return True
    floor = needs.floor + (expected.adapter_size if target == PAYLOAD else 0)
    read = scan.descriptors_read if target == PAYLOAD else scan.regions_read
    return scan.bytes_read < floor or read < max(needs.regions, 1)


def _has_wrong_roles(receipt: Zeroization) -> bool:
    """Whether a process is listed that no run has, or one twice."""
    roles = [process.role for process in receipt.processes]
    identities = {(process.pid, process.start_time) for process in receipt.processes}
    return not set(roles) <= set(ROLES) or len(set(roles)) != len(roles) or len(identities) != len(roles)


def _in_order(receipt: Zeroization, expected: Expected) -> bool:
    """Whether the wipe began and ended in this order, between the segment's launch and the receipt's event.

    All four are of the allocation's clock, which may be set in between by as much as the policy allows.
    """
    skew = timedelta(seconds=expected.policy.max_clock_skew_seconds)
    try:
        launched, began, ended, logged = (
            datetime.fromisoformat(text) for text in (expected.launched, receipt.began, receipt.ended, expected.logged)
        )
        return launched - skew <= began <= ended <= logged + skew
    except (ValueError, TypeError, OverflowError):
        return False


def _is_consistent(scan: Scan, beside: Mapping[str, Scan]) -> bool:
    """Whether the counts of a scan can be of one scan: hits counted by class and by place are the same hits, they fit
    into what was read, and memory left to its descriptors is no more than the descriptors held.
    """
    hits, areas = sum(scan.hits.values()), scan.skipped.values()
    shared = scan.skipped.get("descriptor")
    held = scan.bytes_read + (beside[PAYLOAD].bytes_read if PAYLOAD in beside else 0)
    return (
        set(scan.hits) <= {*REQUIRED_CLASSES, WEIGHTS}
        and hits == sum(scan.where.values())
        and hits <= max(0, scan.bytes_read - _SHORTEST + 1) * len(scan.hits)
        and all((area.regions > 0) == (area.bytes > 0) for area in areas)
        and (shared is None or shared.bytes <= held + shared.regions * _PAGE)
        and (scan.state == "read" or (scan.bytes_read, hits) == (0, 0))
    )


def _hides_device(receipt: Zeroization, expected: Expected) -> bool:
    """Whether the accelerator of the launch is said not to be there, or figures are given for one that is not."""
    device = receipt.device
    if not device.present:
        figures = (device.at_baseline, device.compute_processes, device.bytes_before, device.bytes_after)
        return expected.gpu or any(figure is not None for figure in figures)
    if device.bytes_before is None or device.bytes_after is None:
        return device.at_baseline is not None
    return device.at_baseline != (device.bytes_after <= device.bytes_before)
