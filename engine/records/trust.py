"""The verifier's own inputs: the keys that it trusts, the bundles that it knows, the policies that it accepts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from engine.attestation.measurement import Measurements
from engine.attestation.policy import MAX_POLICY_BYTES, Policy, default_policy, load_policy
from engine.attestation.signers import NOTHING, Statements, TrustedKeys, read_revocations, trusted_key
from engine.errors import UsageError
from engine.records.reference import Known, Reference, own_values, read_reference, shipped
from engine.remote.bundle import build_bundle, bundle_digest, worker_lock
from engine.system.files import read_named
from engine.wire import canonical, digest_of, parse


@dataclass(frozen=True)
class Anchors:
    """The verifier's own inputs. `references` are the values that it knows (`engine.records.reference`).

    `policies` are those that a row may follow, or narrow; `challenge` is the buyer's text, or None.
    """

    trusted: TrustedKeys
    policies: tuple[Policy, ...]
    revocations: Statements = NOTHING
    references: tuple[Known, ...] = ()
    challenge: str | None = None

    def knows_bundle(self, digest: str, lock: dict[str, str]) -> bool:
        """True when this installation builds the same bundle from that lock, or a reference contains it."""
        return any(digest in known.bundles for known in self.references) or digest == rebuilt(canonical(lock))

    def demanded_environments(self) -> frozenset[str]:
        """The environments that the user listed for this verification: if there are any, no other one will do."""
        return frozenset(digest for known in self.references if known.asked for digest in known.environments)

    def covering(self, measured: Measurements, *, by_home: bool) -> tuple[Known | None, Known | None]:
        """Who knows the lock, and who the environment; None where nobody does.

        `by_home`: whether this home signed the row. What an allocation measured of itself covers no other row.
        """
        usable = [known for known in self.references if by_home or known.origin != "there"]
        lock = next((known for known in usable if known.has_lock(measured)), None)
        return lock, next((known for known in usable if measured.environment in known.environments), None)


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
    shipped_folder: Path | None = None,
) -> Anchors:
    """The home's own keys and measurements, the built-in policy and the shipped reference values, together with these
    additional inputs. `shipped_folder` replaces the folder of the shipped values.

    Raises `UsageError` (`trust_invalid`, `reference_*`, `policy_unreadable`) and `RefusedError` (`policy_*`,
    `revocation_invalid`).
    """
    given = [read_reference(path, folder=shipped_folder) for path in references]
    return Anchors(
        trusted=TrustedKeys.from_home(home / "keys") | TrustedKeys.given(trusted_key(text) for text in trust),
        policies=(default_policy(), *map(read_policy, policies)),
        revocations=read_revocations(list(revocations)),
        references=(*given, *shipped(shipped_folder), *own_values(home)),
        challenge=challenge,
    )


def own_reference(environment: str | None = None) -> Reference:
    """The values of this installation: its bundle and lock for the packages installed here, and their environment's
    digest, if the caller measured it. Raises `MissingExtraError`."""
    lock = worker_lock()
    return Reference(
        bundles=(bundle_digest(build_bundle(lock)),),
        locks=(digest_of(lock),),
        environments=() if environment is None else (environment,),
    )


def read_policy(path: Path) -> Policy:
    """A policy from its file; raises as `load_policy`, and `UsageError` (`policy_unreadable`)."""
    try:
        data = read_named(path, MAX_POLICY_BYTES)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}.", "Give --policy a policy file.", code="policy_unreadable"
        ) from error
    return load_policy(data)
