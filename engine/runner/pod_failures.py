"""What an allocation's error code means, in our words; the allocation's own words are quoted as its claim."""

from __future__ import annotations

from typing import Final

from engine.attestation.reasons import REASONS
from engine.hints import HINTS
from engine.plan import SegmentKind
from engine.store.failure import Failure

MAX_CLAIM: Final = 600
_UNKNOWN: Final = "See the last lines of `glasshouse logs` for this run; this version does not know the code."

_SENTENCES: Final[dict[str, str]] = {
    "architecture_unsupported": "The worker cannot train this architecture.",
    "cancelled": "The run was cancelled.",
    "disk_full": "The allocation's disk is full.",
    "gpu_failed": "The GPU or its driver failed.",
    "gpu_out_of_memory": "The GPU ran out of memory.",
    "hub_unreachable": "The allocation could not fetch the model's weights from the hub.",
    "inbox_invalid": "The worker could not read a message from this machine.",
    "internal_error": "The worker met an error of its own.",
    "keyproc_killed": "The key process was killed from outside.",
    "keyproc_out_of_memory": "The machine ran out of memory, and its kernel killed the key process.",
    "keyproc_worker_died": "The key process ended before it had finished.",
    "lease_expired": "The time of the allocation ran out.",
    "module_missing": "A Python module that the training needs is missing or cannot be loaded.",
    "not_started": "This segment was not started, because the one before it failed.",
    "os_error": "The operating system of the allocation reported an error.",
    "out_of_memory": "The training ran out of memory.",
    "payload_changed": "A staged file is not the one that was sent.",
    "payload_incomplete": "The weights do not fit the model.",
    "runner_silent": "The allocation waited for this machine, which did not answer in time.",
    "scan_failed": "The scan of memory failed.",
    "scanner_killed": "The scanner was killed from outside.",
    "scanner_out_of_memory": "The machine ran out of memory, and its kernel killed the scanner.",
    "scanner_worker_died": "The scanner ended before it had finished.",
    "trainer_failed": "The training failed.",
    "trainer_killed": "The trainer was killed from outside.",
    "trainer_out_of_memory": "The machine ran out of memory, and its kernel killed the trainer.",
    "trainer_worker_died": "The trainer ended before it had finished.",
    "weights_changed": "A weight file on the allocation is not the one that this run pins.",
    "worker_stuck": "A process of the worker did not answer in time.",
}


def reported(segment: SegmentKind | str, code: str, claim: str) -> Failure:
    """The failure behind a segment's code: sentence and hint are ours, `claim` is the allocation's text, quoted."""
    sentence, hint = REASONS.get(code, (_SENTENCES.get(code, f"The {segment} segment failed."), _UNKNOWN))
    shown = _one_line(claim)
    said = f' The allocation says: "{shown}"' if shown and shown.rstrip(".") != sentence.rstrip(".") else ""
    return Failure(code=code, message=f"{sentence}{said}", hint=HINTS.get(code, hint) if code != "cancelled" else "")


def _one_line(text: str) -> str:
    """The allocation's text on one line of bounded length, without control characters and double quotes."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text[:MAX_CLAIM]).split())
    return line.replace('"', "'")
