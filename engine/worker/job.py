"""The job that the runner stages beside the bundle: what the supervisor is to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import WireError
from engine.plan import Plan, SegmentKind, load_plan
from engine.wire import parse, sha256_hex

JOB_FILE: Final = "job.json"
JOB_VERSION: Final = 1


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """How long the supervisor waits, in seconds, before it gives up on a step."""

    launch: float = 600.0
    challenge: float = 900.0
    release: float = 900.0
    end: float = 900.0
    lease: float = 8 * 24 * 3600.0


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One run as the allocation sees it. Keys are raw public keys in base64; digests are SHA-256 in hex.

    `allocation_id` is the digest of the provider's id, not the id itself: the evidence contains it and is published.

    `payload_files` are the clear payload's names with their SHA-256, empty without a raw segment.
    `hub_weights` are public weight files by name and SHA-256 that the allocation fetches itself.
    """

    version: int = JOB_VERSION
    run_id: str
    allocation_id: str
    plan: dict[str, Any]
    plan_digest: str
    policy: dict[str, Any]
    policy_digest: str
    manifest_digest: str | None
    payload_files: dict[str, str]
    hub_weights: dict[str, str]
    hub_revision: str | None
    model_type: str
    noise_seed: int
    run_public_key: str
    recipient_public_key: str
    ssh_host_key_digest: str
    limits: Limits = Limits()

    def parsed_plan(self) -> Plan:
        """The validated plan."""
        return load_plan(self.plan)

    def kinds(self) -> tuple[SegmentKind, ...]:
        """The segments in their order."""
        return self.parsed_plan().kinds()


def read_job(folder: Path) -> tuple[Job, str]:
    """The job in a run folder, with the SHA-256 of its bytes; raises `WireError` (`job_invalid`)."""
    raw = (folder / JOB_FILE).read_bytes()
    try:
        return msgspec.convert(parse(raw), Job, strict=True), sha256_hex(raw)
    except msgspec.ValidationError as error:
        raise WireError(f"The job file is not valid: {error}.", code="job_invalid") from error
