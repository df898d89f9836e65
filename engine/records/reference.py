"""Reference values (RFC 9334): which bundles, locks and environments a verifier knows, and who vouches for them.

They come from four places, and a row says which one covered it:

- `installed`: the lock that this installation ships;
- `release`: the signed file of a release, shipped with it or given; a release key of this installation signed it;
- `given`: an unsigned file, for which the user alone vouches;
- `here`, `there`: what the runners of this home measured, on this machine or on an allocation. A measurement that an
  allocation made of itself only shows that nothing changed since, so it covers this home's own rows and no other's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from engine.attestation.measurement import Measurements
from engine.attestation.signers import trusted_key
from engine.attestation.statements import read_predicate
from engine.errors import RefusedError, StoreError, UsageError, WireError
from engine.remote.lockfile import shipped_lock
from engine.sealing.manifest import is_digest
from engine.system.clock import utc
from engine.system.files import read_named, write_private
from engine.system.resources import data_path
from engine.wire import canonical, digest_of, parse

PREDICATE: Final = "urn:glasshouse:predicate:reference-values:1"
RELEASE_KEYS: Final = "release-keys.txt"
RELEASE_VALUES: Final = "values.dsse.json"
FOLDER: Final = "references"
MAX_REFERENCE_BYTES: Final = 1024 * 1024
MAX_OWN_FILES: Final = 10_000
Origin = Literal["installed", "release", "given", "here", "there"]


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An unsigned file of reference values: SHA-256, in hex, of bundles, locks (their canonical JSON), environments."""

    version: int = 1
    bundles: tuple[str, ...]
    locks: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()


class BundleValue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The bundle that a release builds around one of its locks."""

    lock: str
    sha256: str


class LockValue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A lock: `sha256` over the canonical JSON of `packages`, `file_sha256` over its file with the wheels' hashes."""

    name: str
    sha256: str
    file_sha256: str
    packages: dict[str, str]


class EnvironmentValue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The environment that a lock gives on a platform; `sha256` is null where nobody has measured it."""

    platform: str
    lock: str
    sha256: str | None


class PolicyValue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The built-in policy of a release."""

    id: str
    version: int
    sha256: str


class ReleaseValues(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """The reference values of one release, which its Reference Value Provider signs. Times are UTC."""

    version: int = 1
    release: str
    issued: str
    expires: str
    bundles: tuple[BundleValue, ...]
    locks: tuple[LockValue, ...]
    environments: tuple[EnvironmentValue, ...]
    policies: tuple[PolicyValue, ...]

    def subjects(self) -> dict[str, str]:
        """The statement's subjects: every digest that is known, by what it is of."""
        return {
            **{f"bundle {value.lock}": value.sha256 for value in self.bundles},
            **{f"lock {value.name}": value.sha256 for value in self.locks},
            **{f"environment {one.platform}": one.sha256 for one in self.environments if one.sha256 is not None},
            **{f"policy {value.id}": value.sha256 for value in self.policies},
        }

    def is_valid(self) -> bool:
        """Whether every digest is one, locks have the digests that they state, and the times are times."""
        named = {lock.name for lock in self.locks}
        digests = [*self.subjects().values(), *(lock.file_sha256 for lock in self.locks)]
        return (
            self.version == 1
            and all(map(is_digest, digests))
            and all(digest_of(lock.packages) == lock.sha256 for lock in self.locks)
            and {value.lock for value in self.bundles} | {value.lock for value in self.environments} <= named
            and _moment(self.issued) < _moment(self.expires)
        )


@dataclass(frozen=True)
class Known:
    """Reference values of one origin. `title` names the release, if they are a release's."""

    origin: Origin
    bundles: frozenset[str] = frozenset()
    locks: frozenset[str] = frozenset()
    environments: frozenset[str] = frozenset()
    title: str = ""
    asked: bool = False
    """Whether the user gave them with this verification."""

    def has_lock(self, measured: Measurements) -> bool:
        """Whether the names and versions in the bundle are known; a known bundle holds a known lock."""
        return measured.lock in self.locks or measured.bundle in self.bundles


def _moment(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without a zone")
    return at


def _invalid(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} is not a file of reference values: {why}.",
        "Give a release's signed file as it was published, or one JSON object: "
        '{"version": 1, "bundles": ["<SHA-256 in hex>"], "locks": [], "environments": []}.',
        code="reference_invalid",
    )


def release_keys(folder: Path | None = None) -> tuple[bytes, ...]:
    """The raw public keys that sign releases; none before the first release. `folder` replaces the shipped one."""
    path = (data_path("reference") if folder is None else folder) / RELEASE_KEYS
    lines = [line.strip() for line in path.read_text(encoding="ascii").splitlines()]
    keys = [trusted_key(line).public for line in lines if line and not line.startswith("#")]
    return tuple(key for key in keys if key is not None)


def _read(path: Path) -> Any:
    try:
        return parse(read_named(path, MAX_REFERENCE_BYTES))
    except OSError as error:
        raise _invalid(path, f"it cannot be read ({error.strerror})") from error
    except WireError as error:
        raise _invalid(path, "it cannot be read as JSON") from error


def read_reference(path: Path, *, folder: Path | None = None, now: datetime | None = None) -> Known:
    """Reference values from a file, either a release's signed one or an unsigned one.

    Raises `UsageError`: `reference_invalid`, `reference_signer_unknown`, `reference_expired`.
    """
    raw = _read(path)
    if isinstance(raw, dict) and "payload" in raw:
        return _signed(path, raw, release_keys(folder), now or utc())
    try:
        plain = msgspec.convert(raw, Reference, strict=True)
    except msgspec.ValidationError as error:
        raise _invalid(path, "it has other fields") from error
    if plain.version != 1 or not all(map(is_digest, (*plain.bundles, *plain.locks, *plain.environments))):
        raise _invalid(path, "it has another version, or a digest that is none")
    return Known("given", frozenset(plain.bundles), frozenset(plain.locks), frozenset(plain.environments), asked=True)


def _signed(path: Path, envelope: dict[str, Any], keys: Iterable[bytes], now: datetime) -> Known:
    values = None
    for key in keys:
        try:
            values, subjects = read_predicate(envelope, key, PREDICATE, ReleaseValues)
        except RefusedError as error:
            if error.code == "envelope_signer_unknown":
                continue
            raise _invalid(path, error.message.rstrip(".").lower()) from error
        break
    if values is None:
        raise UsageError(
            f"{path} is not signed by a release key that this installation knows.",
            "Update glasshouse, or get the file from the place where you got glasshouse.",
            code="reference_signer_unknown",
        )
    try:
        is_valid = values.is_valid() and subjects == values.subjects()
        is_current = is_valid and _moment(values.expires) >= now
    except ValueError as error:
        raise _invalid(path, "a time in it is none") from error
    if not is_valid:
        raise _invalid(path, "its values contradict each other")
    if not is_current:
        raise UsageError(
            f"{path} expired at {values.expires}.",
            "Get the current reference values of that release, or update glasshouse.",
            code="reference_expired",
        )
    return Known(
        "release",
        frozenset(value.sha256 for value in values.bundles),
        frozenset(value.sha256 for value in values.locks),
        frozenset(value.sha256 for value in values.environments if value.sha256 is not None),
        title=values.release,
        asked=True,
    )


@cache
def _shipped_lock() -> str:
    return digest_of(shipped_lock().versions)


def shipped(folder: Path | None = None, *, now: datetime | None = None) -> tuple[Known, ...]:
    """What this installation brings: its lock, and its release's signed values unless there are none or they expired.

    Raises `UsageError` as `read_reference` does, if the shipped file was damaged.
    """
    known = [Known("installed", locks=frozenset({_shipped_lock()}))]
    path = (data_path("reference") if folder is None else folder) / RELEASE_VALUES
    if path.exists():
        try:
            known.append(replace(read_reference(path, folder=folder, now=now), asked=False))
        except UsageError as error:
            if error.code != "reference_expired":
                raise
    return tuple(known)


class _Own(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a runner of this home measured; `origin` says on which side."""

    version: int = 1
    origin: Literal["here", "there"]
    measurements: Measurements


def remember(home: Path, measurements: Measurements, *, on_this_machine: bool) -> None:
    """Keep what a runner measured, so that this home can verify its own rows; idempotent.

    Raises `StoreError` (`store_unwritable`).
    """
    folder = home / FOLDER
    own = canonical(msgspec.to_builtins(_Own(origin="here" if on_this_machine else "there", measurements=measurements)))
    path = folder / f"{digest_of(parse(own))}.json"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            write_private(path, own)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}.",
            "Free some space or choose another --home.",
            code="store_unwritable",
        ) from error


def own_values(home: Path) -> tuple[Known, ...]:
    """What the runners of this home measured. A damaged file is passed over: what it covered is then unknown."""
    folder = home / FOLDER
    if not folder.is_dir():
        return ()
    kept = []
    for path in sorted(folder.glob("*.json"))[:MAX_OWN_FILES]:
        try:
            own = msgspec.convert(_read(path), _Own, strict=True)
        except (UsageError, msgspec.ValidationError):
            continue
        kept.append(
            Known(
                own.origin,
                locks=frozenset({own.measurements.lock}),
                environments=frozenset({own.measurements.environment}),
            )
        )
    return tuple(kept)
