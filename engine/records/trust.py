"""The verifier's own inputs: the keys that it trusts, the bundles that it knows, the policies that it accepts."""

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
from engine.system.files import read_named
from engine.wire import canonical, parse

MAX_REFERENCE_BYTES: Final = 1024 * 1024


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of reference values (RFC 9334): digests of known good bundles and, optionally, environments."""

    version: int = 1
    bundles: tuple[str, ...]
    environments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Anchors:
    """The verifier's own inputs. Without `environments` any environment in the evidence is accepted.

    `policies` are those that a row may follow, or narrow; `challenge` is the buyer's text, or None.
    """

    trusted: TrustedKeys
    policies: tuple[Policy, ...]
    revocations: Statements = NOTHING
    bundles: frozenset[str] = frozenset()
    environments: frozenset[str] = frozenset()
    challenge: str | None = None

    def knows_bundle(self, digest: str, lock: dict[str, str]) -> bool:
        """True when this installation builds the same bundle from that lock, or a reference contains it."""
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
    """The home's own keys and the built-in policy, together with these additional inputs.

    Raises `UsageError` (`trust_invalid`, `reference_invalid`, `policy_unreadable`) and `RefusedError` (`policy_*`,
    `revocation_invalid`).
    """
    reference_files = [read_reference(path) for path in references]
    return Anchors(
        trusted=TrustedKeys.from_home(home / "keys") | TrustedKeys.given(trusted_key(text) for text in trust),
        policies=(default_policy(), *map(read_policy, policies)),
        revocations=read_revocations(list(revocations)),
        bundles=frozenset(digest for one in reference_files for digest in one.bundles),
        environments=frozenset(digest for one in reference_files for digest in one.environments),
        challenge=challenge,
    )


def own_reference() -> Reference:
    """The bundle that this installation builds for the packages installed here; raises `MissingExtraError`."""
    return Reference(bundles=(bundle_digest(build_bundle()),))


def read_reference(path: Path) -> Reference:
    """Reference values from their file; raises `UsageError` (`reference_invalid`)."""
    try:
        data = read_named(path, MAX_REFERENCE_BYTES)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.",
            "Give --reference a file of reference values.",
            code="reference_invalid",
        ) from error
    invalid = UsageError(
        f"{path} is not a file of reference values.",
        'It must be one JSON object: {"version": 1, "bundles": ["<SHA-256 in hex>"], "environments": []}.',
        code="reference_invalid",
    )
    try:
        reference = msgspec.convert(parse(data), Reference, strict=True)
    except (WireError, msgspec.ValidationError) as error:
        raise invalid from error
    if reference.version != 1 or not all(map(is_digest, (*reference.bundles, *reference.environments))):
        raise invalid
    return reference


def read_policy(path: Path) -> Policy:
    """A policy from its file; raises as `load_policy`, and `UsageError` (`policy_unreadable`)."""
    try:
        data = read_named(path, MAX_POLICY_BYTES)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.", "Give --policy a policy file.", code="policy_unreadable"
        ) from error
    return load_policy(data)
