"""What a verifier brings along: whom it trusts, which bundles it knows, which policy it holds rows to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from engine.attestation.policy import MAX_POLICY_BYTES, Policy, default_policy, load_policy
from engine.attestation.signers import NOTHING, Statements, TrustedKeys, read_revocations, trusted_key
from engine.errors import UsageError, WireError
from engine.remote.bundle import build_bundle, bundle_digest
from engine.sealing.manifest import is_digest
from engine.wire import canonical, parse

MAX_REFERENCE_BYTES: Final = 1024 * 1024


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of reference values (RFC 9334): digests of bundles and, if any, of environments that are known good."""

    version: int = 1
    bundles: tuple[str, ...]
    environments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Anchors:
    """The verifier's own material. Without `environments` the environment is taken as the evidence states it.

    `policies` are those a row may follow, or narrow; `challenge` is the buyer's text, None where there was none.
    """

    trusted: TrustedKeys
    policies: tuple[Policy, ...]
    revocations: Statements = NOTHING
    bundles: frozenset[str] = frozenset()
    environments: frozenset[str] = frozenset()
    challenge: str | None = None

    def knows_bundle(self, digest: str, lock: dict[str, str]) -> bool:
        """True when this installation builds the bundle from that lock, or a reference names it."""
        return digest in self.bundles or digest == rebuilt(canonical(lock))


@cache
def rebuilt(lock: bytes) -> str:
    """The digest of the bundle that this installation builds around a lock (canonical JSON)."""
    return bundle_digest(build_bundle(parse(lock)))


def anchors(
    home: Path,
    *,
    trust: Iterable[str] = (),
    references: Iterable[Path] = (),
    policies: Iterable[Path] = (),
    revocations: Iterable[Path] = (),
    challenge: str | None = None,
) -> Anchors:
    """The home's own keys and the built-in policy, and what was given by hand.

    Raises `UsageError` (`trust_invalid`, `reference_invalid`, `policy_unreadable`) and `RefusedError` (`policy_*`,
    `revocation_invalid`).
    """
    known = [read_reference(path) for path in references]
    return Anchors(
        trusted=TrustedKeys.from_home(home / "keys") | TrustedKeys.given(trusted_key(text) for text in trust),
        policies=(default_policy(), *map(read_policy, policies)),
        revocations=read_revocations(list(revocations)),
        bundles=frozenset(digest for one in known for digest in one.bundles),
        environments=frozenset(digest for one in known for digest in one.environments),
        challenge=challenge,
    )


def own_reference() -> Reference:
    """The bundle that this installation builds around what is installed here; raises `MissingExtraError`."""
    return Reference(bundles=(bundle_digest(build_bundle()),))


def read_reference(path: Path) -> Reference:
    """Reference values from their file; raises `UsageError` (`reference_invalid`)."""
    invalid = UsageError(
        f"{path} holds no reference values.",
        'It is one JSON object: {"version": 1, "bundles": ["<SHA-256 in hex>"], "environments": []}.',
        code="reference_invalid",
    )
    try:
        found = msgspec.convert(parse(_read(path, MAX_REFERENCE_BYTES)), Reference, strict=True)
    except (OSError, WireError, msgspec.ValidationError) as error:
        raise invalid from error
    if found.version != 1 or not all(map(is_digest, (*found.bundles, *found.environments))):
        raise invalid
    return found


def read_policy(path: Path) -> Policy:
    """A policy from its file; raises as `load_policy`, and `UsageError` (`policy_unreadable`)."""
    try:
        data = _read(path, MAX_POLICY_BYTES)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.", "Give --policy a policy file.", code="policy_unreadable"
        ) from error
    return load_policy(data)


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most + 1)
