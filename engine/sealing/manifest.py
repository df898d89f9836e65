"""The manifest of a package: canonical JSON whose digest is the package's identity."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from engine.errors import SealingError, WireError
from engine.wire import canonical, parse, sha256_hex

MANIFEST_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 1024 * 1024
MAX_FILES: Final = 1024
MAX_FILE_BYTES: Final = 64 * 1024**3
MAX_TOTAL_BYTES: Final = 1024 * 1024**3

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HEX_64 = re.compile(r"[0-9a-f]{64}")
_PACKAGE_ID = re.compile(r"[0-9a-f]{32}")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a package: its name, plain size in bytes and SHA-256 of the plain bytes in hex."""

    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of a package and what it belongs to. `created` is UTC; digests are SHA-256 in hex."""

    version: int
    package_id: str
    created: str
    run_id: str
    plan_digest: str
    policy_digest: str
    files: tuple[FileEntry, ...]


def is_digest(text: str) -> bool:
    """True for 64 lower-case hex digits."""
    return _HEX_64.fullmatch(text) is not None


def is_run_id(text: str) -> bool:
    """True for 1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit."""
    return _RUN_ID.fullmatch(text) is not None


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest's canonical JSON."""
    return canonical(msgspec.to_builtins(manifest))


def manifest_digest(manifest: Manifest) -> str:
    """SHA-256 in hex over the manifest's canonical JSON: the package's identity."""
    return sha256_hex(manifest_bytes(manifest))


def _refuse(code: str, message: str) -> SealingError:
    return SealingError(message, "Build the package again; do not use this one.", code=code)


def check_name(name: str) -> None:
    """Raise `SealingError` (`manifest_name`) for a name with separators, a leading dot or characters not in `_NAME`."""
    if _NAME.fullmatch(name) is None or ".." in name:
        shown = name if name.isprintable() and len(name) <= 64 else "(unprintable or long)"
        raise _refuse("manifest_name", f"{shown!r} is not allowed as the name of a package file.")


def _check_files(files: tuple[FileEntry, ...]) -> None:
    if not 0 < len(files) <= MAX_FILES:
        raise _refuse("manifest_count", f"A package must have 1 to {MAX_FILES} files, not {len(files)}.")
    names: set[str] = set()
    for entry in files:
        check_name(entry.name)
        if entry.name.casefold() in names:
            raise _refuse("manifest_duplicate", f"The manifest lists {entry.name} twice.")
        names.add(entry.name.casefold())
        if not 0 <= entry.size <= MAX_FILE_BYTES:
            raise _refuse("manifest_size", f"The size of {entry.name} in the manifest is outside the limits.")
        if not is_digest(entry.sha256):
            raise _refuse("manifest_invalid", f"The digest of {entry.name} in the manifest is not a SHA-256.")
    if sum(entry.size for entry in files) > MAX_TOTAL_BYTES:
        raise _refuse("manifest_size", "The total size of the files in the manifest exceeds the limit.")


def checked_manifest(manifest: Manifest) -> Manifest:
    """The same manifest, if every value is valid; raises `SealingError` (`manifest_*` codes)."""
    if manifest.version != MANIFEST_VERSION:
        raise _refuse(
            "manifest_version", f"This version of glasshouse does not know manifest version {manifest.version}."
        )
    is_valid = (
        _PACKAGE_ID.fullmatch(manifest.package_id)
        and is_run_id(manifest.run_id)
        and _CREATED.fullmatch(manifest.created)
        and is_digest(manifest.plan_digest)
        and is_digest(manifest.policy_digest)
    )
    if not is_valid:
        raise _refuse("manifest_invalid", "The manifest has a malformed id, time or digest.")
    _check_files(manifest.files)
    return manifest


def parse_manifest(data: bytes) -> Manifest:
    """A manifest from its canonical bytes; raises `SealingError` (`manifest_*` codes) for anything else."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise _refuse("manifest_too_large", "The manifest is larger than the limit.")
    try:
        raw: Any = parse(data)
        is_canonical = canonical(raw) == data
    except WireError as error:
        raise _refuse("manifest_invalid", "The manifest is not strict JSON.") from error
    if not is_canonical:
        raise _refuse("manifest_not_canonical", "The manifest is not in its canonical form.")
    try:
        manifest = msgspec.convert(raw, Manifest, strict=True)
    except msgspec.ValidationError as error:
        raise _refuse("manifest_invalid", "The manifest does not match its schema.") from error
    return checked_manifest(manifest)
