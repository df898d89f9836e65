"""The appraisal policy: a small declarative document that the operator chooses, never the attester."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.attestation.reasons import refusal
from engine.errors import WireError
from engine.system.resources import data_path
from engine.wire import digest_of, parse

POLICY_SCHEMA: Final = 1
SOFTWARE: Final = "software"
HARDWARE_TIERS: Final = ("nvidia-cc", "snp", "tdx")
TIERS: Final = (SOFTWARE, *HARDWARE_TIERS)
CONTROLS: Final = (
    "single_task",
    "no_core",
    "no_dump",
    "no_new_privs",
    "yama",
    "mlockall",
    "dontdump",
    "network_namespace",
    "landlock_fs",
    "landlock_tcp",
    "seccomp",
    "memfd_seals",
)
MAX_POLICY_BYTES: Final = 64 * 1024
MAX_AGE_SECONDS: Final = 3600
MAX_SKEW_SECONDS: Final = 3600
MAX_VERSION: Final = 1_000_000
UNREADABLE: Final = ("vvar", "vvar_vclock", "vsyscall", "guard", "device", "clean_file", "memfd_secret", "descriptor")
"""The classes of memory that a scan may be allowed to leave unread: those of `isolation.smaps`, and descriptors."""
MAX_UNREAD: Final = {
    "clean_file": 2**40,  # libraries, and public weights that are mapped from their files
    "descriptor": 2**40,  # memfds that are read by descriptor in the same scan; the receipt is checked for that
    "device": 2**30,  # maps of the driver; none is accepted where the launch saw no GPU
    "guard": 2**47,  # address space without pages: a CUDA context reserves it by the terabyte
    "vsyscall": 64 * 1024,
    "vvar": 64 * 1024,
    "vvar_vclock": 64 * 1024,
}
MAX_UNSEEN: Final = 512
MAX_BYTES: Final = 2**48
MAX_PROCESSES: Final = 1_000_000


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What evidence must show before keys are released.

    `version` only grows. `required_controls` are names of `CONTROLS` that must be observed as enforced.
    `max_evidence_age_seconds` and `max_clock_skew_seconds` compare the attester's clock with the operator's;
    freshness itself is proven by the nonce. `sealed_adapter`: adapters leave the allocation only in sealed form.
    `positive_control`: zeroization is not proven unless the scan found the secrets before the wipe.
    `max_unread_bytes`: by class of memory, how much of each scanned target may be left unread; a class that is not
    named may not be. `max_processes_unseen`: how many processes of the machine may hide which deleted files they hold.
    """

    schema: int = POLICY_SCHEMA
    version: int
    id: str
    tiers: tuple[str, ...]
    required_controls: tuple[str, ...]
    max_evidence_age_seconds: int
    max_clock_skew_seconds: int
    allow_debug: bool = False
    sealed_adapter: bool = True
    positive_control: bool = True
    max_unread_bytes: dict[str, int] = msgspec.field(default_factory=lambda: dict(MAX_UNREAD))
    max_processes_unseen: int = MAX_UNSEEN


def _is_valid(policy: Policy) -> bool:
    return (
        policy.schema == POLICY_SCHEMA
        and 1 <= policy.version <= MAX_VERSION
        and 0 < len(policy.id) <= 64
        and policy.id.isprintable()
        and len(policy.tiers) > 0
        and len(set(policy.tiers)) == len(policy.tiers)
        and set(policy.tiers) <= set(TIERS)
        and len(set(policy.required_controls)) == len(policy.required_controls)
        and set(policy.required_controls) <= set(CONTROLS)
        and 0 < policy.max_evidence_age_seconds <= MAX_AGE_SECONDS
        and 0 <= policy.max_clock_skew_seconds <= MAX_SKEW_SECONDS
        and set(policy.max_unread_bytes) <= set(UNREADABLE)
        and all(0 <= size <= MAX_BYTES for size in policy.max_unread_bytes.values())
        and 0 <= policy.max_processes_unseen <= MAX_PROCESSES
    )


def policy_from(raw: Any) -> Policy:
    """A policy from builtins; raises `RefusedError` (`policy_unknown_field`, `policy_invalid`)."""
    if isinstance(raw, dict):
        known = {field.encode_name for field in msgspec.structs.fields(Policy)}
        unknown = sorted(str(name)[:40] for name in raw if name not in known)
        if unknown:
            raise refusal("policy_unknown_field", repr(unknown[0]))
    try:
        policy = msgspec.convert(raw, Policy, strict=True)
    except msgspec.ValidationError as error:
        raise refusal("policy_invalid") from error
    if not _is_valid(policy):
        raise refusal("policy_invalid")
    return policy


def load_policy(data: bytes) -> Policy:
    """A policy from the bytes of its file; raises `RefusedError` (`policy_unknown_field`, `policy_invalid`)."""
    if len(data) > MAX_POLICY_BYTES:
        raise refusal("policy_invalid")
    try:
        raw = parse(data)
    except WireError as error:
        raise refusal("policy_invalid") from error
    return policy_from(raw)


def default_policy() -> Policy:
    """The built-in policy."""
    return load_policy(data_path("policies", "default.json").read_bytes())


def policy_digest(policy: Policy) -> str:
    """SHA-256 in hex over the policy's canonical JSON."""
    return digest_of(msgspec.to_builtins(policy))


def loosened(custom: Policy, default: Policy) -> tuple[str, ...]:
    """The fields in which `custom` requires less than `default`, by their names in the file."""
    looser = {
        "tiers": not set(custom.tiers) <= set(default.tiers),
        "requiredControls": not set(custom.required_controls) >= set(default.required_controls),
        "maxEvidenceAgeSeconds": custom.max_evidence_age_seconds > default.max_evidence_age_seconds,
        "maxClockSkewSeconds": custom.max_clock_skew_seconds > default.max_clock_skew_seconds,
        "allowDebug": custom.allow_debug and not default.allow_debug,
        "sealedAdapter": default.sealed_adapter and not custom.sealed_adapter,
        "positiveControl": default.positive_control and not custom.positive_control,
        "maxUnreadBytes": any(
            size > default.max_unread_bytes.get(name, -1) for name, size in custom.max_unread_bytes.items()
        ),
        "maxProcessesUnseen": custom.max_processes_unseen > default.max_processes_unseen,
    }
    return tuple(name for name, is_looser in looser.items() if is_looser)


def narrower_or_equal(custom: Policy, default: Policy) -> bool:
    """True when `custom` is not older than `default` and requires at least as much in every field."""
    return custom.version >= default.version and not loosened(custom, default)


def checked_policy(custom: Policy, default: Policy) -> Policy:
    """`custom`, if it may replace `default`; raises `RefusedError` (`policy_older`, `policy_loosened`)."""
    if custom.version < default.version:
        raise refusal("policy_older", f"version {custom.version}, the built-in one is {default.version}")
    looser = loosened(custom, default)
    if looser:
        raise refusal("policy_loosened", ", ".join(looser))
    return custom
