"""Whose rows count: the operators' signing keys that somebody trusts, what became of them, and the judgement of one
signature.

Nothing here needs a passphrase, a private key, a database or a network.

A verifier does this:

    trusted = TrustedKeys.from_home(home / "keys") | TrustedKeys.given(trusted_key(text) for text in trust_options)
    revocations = read_revocations(revocation_files)
    judge_signer(operator_public, delegation_issued, trusted=trusted, revocations=revocations)

The rules:

- A key counts when it is trusted, or when a trusted key introduced it by rotations: it and no other key, while it was
  in use. A key that introduced two leads to neither: one of them may be a thief's.
- A retired key counts for delegations issued until it was retired (and a minute longer: a run may have been starting).
- `compromised`: nothing that the key signed counts, whatever date it bears, for a thief chooses the date; nor does any
  key that it introduced, unless that one is trusted for itself.
- `superseded`, `lost`: delegations issued before the revocation still count, and rotations up to it still lead on.
- A key may be revoked by itself, by a successor, or by any key of the same home. Of two revocations the harder counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from engine.attestation.reasons import refusal
from engine.attestation.revocation import Kind, Revocation, Statements, read_revocations, read_statements
from engine.errors import UsageError
from engine.sealing.key_generations import read_ring
from engine.sealing.pem import fingerprint, key_id

__all__ = [
    "Statements",
    "TrustedKey",
    "TrustedKeys",
    "follow_rotations",
    "judge_signer",
    "read_revocations",
    "trust_line",
    "trusted_key",
]

NOTHING: Final = Statements()
GRACE: Final = timedelta(minutes=1)
_MAX_FILE_BYTES: Final = 16 * 1024
_FINGERPRINT: Final = re.compile(r"(?:SHA256:)?([0-9a-f]{64})")
_PUBLIC: Final = re.compile(r"ed25519:([0-9a-f]{64})")
State = Literal["current", "retired", "revoked"]


@dataclass(frozen=True)
class TrustedKey:
    """A signing key and what is known about it. `public` is raw, None where only a fingerprint was given.

    Times are UTC: it signs from `valid_from` until `valid_until`; None means that nothing is known against it.
    """

    key_id: str
    public: bytes | None = None
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    revoked_at: datetime | None = None
    revocation: Kind | None = None
    revocation_text: str = ""
    home: bool = False

    @property
    def state(self) -> State:
        """`revoked` before `retired` before `current`."""
        if self.revocation is not None:
            return "revoked"
        return "current" if self.valid_until is None else "retired"

    @property
    def fingerprint(self) -> str:
        """The key's name for people."""
        return f"SHA256:{self.key_id}"

    def _merged(self, other: TrustedKey) -> TrustedKey:
        untils = [until for until in (self.valid_until, other.valid_until) if until is not None]
        return replace(
            self,
            public=self.public or other.public,
            valid_from=self.valid_from or other.valid_from,
            valid_until=min(untils, default=None),
            home=self.home or other.home,
        )

    def _judged(self, revocation: Revocation) -> TrustedKey:
        """With a revocation; of two the harder one stays."""
        if self.revocation is not None and self.revoked_at is not None:
            hard, new_is_hard = self.revocation == "compromised", revocation.reason == "compromised"
            if hard > new_is_hard or (hard == new_is_hard and self.revoked_at <= revocation.moment):
                return self
        return replace(
            self, revoked_at=revocation.moment, revocation=revocation.reason, revocation_text=revocation.text
        )


def _of_home(public: str, made: str, retired: str | None) -> TrustedKey:
    raw = bytes.fromhex(public)
    return TrustedKey(
        key_id(raw),
        raw,
        valid_from=datetime.fromisoformat(made),
        valid_until=None if retired is None else datetime.fromisoformat(retired),
        home=True,
    )


@dataclass(frozen=True)
class TrustedKeys:
    """The keys that somebody trusts, by key id, and the statements known beside them."""

    keys: dict[str, TrustedKey]
    statements: Statements = NOTHING

    @classmethod
    def from_home(cls, folder: Path) -> TrustedKeys:
        """The signing keys, present and past, of a key folder (`home / "keys"`); none where there is no folder.

        Raises `SealingError` (`key_invalid`, `key_permissions`, `key_folder_unusable`) and `RefusedError`
        (`rotation_invalid`, `revocation_invalid`) where the folder's files are damaged.
        """
        ring = read_ring(folder)
        if ring is None:
            return cls({})
        keys = [_of_home(ring.signing, ring.signing_made, None)]
        keys += [_of_home(past.public, past.made, past.retired) for past in ring.past_signing]
        return _revoked(cls({key.key_id: key for key in keys}, read_statements(ring.statements)))

    @classmethod
    def given(cls, keys: Iterable[TrustedKey]) -> TrustedKeys:
        """Keys as `trusted_key` reads them."""
        return cls({}) | cls({key.key_id: key for key in keys})

    def __or__(self, other: TrustedKeys) -> TrustedKeys:
        """The keys of both, each with what either knows about it."""
        merged = dict(self.keys)
        for name, key in other.keys.items():
            merged[name] = merged[name]._merged(key) if name in merged else key
        return _revoked(TrustedKeys(merged, self.statements + other.statements))

    def find(self, public: bytes) -> TrustedKey | None:
        """The key, when it is among them."""
        return self.keys.get(key_id(public))


def trust_line(public: bytes) -> str:
    """A signing key as one line, in the form that `trusted_key` takes."""
    return f"ed25519:{public.hex()}"


def _distrust(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text} is not a key to trust: {why}.",
        "Give a fingerprint (SHA256:...), a PEM file of an Ed25519 public key, or what `glasshouse key show --public` "
        "prints.",
        code="trust_invalid",
    )


def _from_text(text: str) -> TrustedKey | None:
    if found := _FINGERPRINT.fullmatch(text):
        return TrustedKey(found[1])
    if found := _PUBLIC.fullmatch(text):
        public = bytes.fromhex(found[1])
        return TrustedKey(key_id(public), public)
    return None


def trusted_key(text_or_path: str | Path) -> TrustedKey:
    """What a person gives as a key to trust: a fingerprint with or without `SHA256:` (64 hex digits), the line that
    `key show --public` prints, or a file with either or with an Ed25519 public key in PEM.

    Raises `UsageError` (`trust_invalid`).
    """
    if isinstance(text_or_path, str) and (key := _from_text(text_or_path.strip())):
        return key
    path = Path(text_or_path)
    shown = str(path) if str(path).isprintable() and len(str(path)) <= 200 else "This"
    try:
        if not path.is_file():
            raise _distrust(shown, "it has no form that is known, and is no file")
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _distrust(shown, "it cannot be read") from error
    if b"PRIVATE KEY" in data:
        raise _distrust(shown, "it holds a private key, which is nobody else's to see")
    if b"-----BEGIN" in data:
        return _from_pem(data, shown)
    try:
        key = _from_text(data.decode("ascii").strip()) if len(data) <= _MAX_FILE_BYTES else None
    except UnicodeDecodeError:
        key = None
    if key is None:
        raise _distrust(shown, "it holds neither a fingerprint nor a public key")
    return key


def _from_pem(data: bytes, shown: str) -> TrustedKey:
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _distrust(shown, "its PEM does not hold a public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _distrust(shown, "its key is not an Ed25519 key; only those sign rows")
    public = key.public_bytes_raw()
    return TrustedKey(key_id(public), public)


def successors(key: str, statements: Statements) -> frozenset[str]:
    """Ids of the keys that `key` introduced, and those in turn."""
    found, open_ends = {key}, [key]
    while open_ends:
        public_id = open_ends.pop()
        for rotation in statements.rotations:
            new = key_id(bytes.fromhex(rotation.new_public))
            if key_id(bytes.fromhex(rotation.old_public)) == public_id and new not in found:
                found.add(new)
                open_ends.append(new)
    return frozenset(found)


def _may_revoke(trusted: TrustedKeys, revocation: Revocation) -> bool:
    signer, revoked = key_id(bytes.fromhex(revocation.signer)), trusted.keys.get(revocation.key_id)
    if revoked is not None and revoked.home and signer in trusted.keys and trusted.keys[signer].home:
        return True
    return signer in successors(revocation.key_id, trusted.statements)


def _revoked(trusted: TrustedKeys) -> TrustedKeys:
    """With every revocation entered that its signer had a right to."""
    keys = dict(trusted.keys)
    for revocation in trusted.statements.revocations:
        if revocation.key_id in keys and _may_revoke(trusted, revocation):
            keys[revocation.key_id] = keys[revocation.key_id]._judged(revocation)
    return TrustedKeys(keys, trusted.statements)


def _leads_on(key: TrustedKey, moment: datetime) -> bool:
    if key.revocation == "compromised":
        return False
    in_use = key.valid_until is None or moment <= key.valid_until + GRACE
    return in_use and (key.revoked_at is None or moment <= key.revoked_at)


def follow_rotations(trusted: TrustedKeys, statements: Statements = NOTHING) -> TrustedKeys:
    """The trusted keys with those that they introduced, and with every revocation known entered.

    A key that introduced another is retired from then on. Whoever stole a retired key can still sign with it, so one
    that introduced two keys leads to neither, and this home's own keys lead to none but its own.
    """
    known = trusted | TrustedKeys({}, statements)
    pairs = {(rotation.old_public, rotation.new_public) for rotation in known.statements.rotations}
    forked = {old for old, count in Counter(old for old, _ in pairs).items() if count > 1}
    grown = True
    while grown:
        grown = False
        for rotation in known.statements.rotations:
            old, new = bytes.fromhex(rotation.old_public), bytes.fromhex(rotation.new_public)
            introducer = known.find(old)
            if introducer is None or not _leads_on(introducer, rotation.moment):
                continue
            if introducer.home or rotation.old_public in forked:
                continue
            learned = TrustedKeys(
                {
                    introducer.key_id: TrustedKey(introducer.key_id, old, valid_until=rotation.moment),
                    key_id(new): TrustedKey(key_id(new), new, valid_from=rotation.moment),
                }
            )
            joined = known | learned
            grown = grown or joined.keys != known.keys
            known = joined
    return known


def judge_signer(
    public: bytes,
    issued: datetime,
    *,
    trusted: TrustedKeys,
    revocations: Statements = NOTHING,
) -> TrustedKey:
    """The trusted key that `public` (raw) is, when what it signed at `issued` counts.

    `issued` is when its delegation to the run's key says that it was issued, with a time zone. `revocations` are those
    given by hand; those of `trusted` count too. Raises `RefusedError`: `signer_unknown`, `signer_revoked`;
    `revocation_invalid` where a revocation of this very key was signed by somebody without the right to.
    """
    if issued.tzinfo is None:
        raise refusal("predicate_malformed")
    known = follow_rotations(trusted, revocations)
    for revocation in known.statements.revocations:
        if revocation.public == public.hex() and not _may_revoke(known, revocation):
            raise refusal("revocation_invalid", "its signer is no successor of the key")
    key = known.find(public)
    if key is None:
        raise refusal("signer_unknown", fingerprint(public))
    if key.revocation is not None and key.revoked_at is not None:
        if key.revocation == "compromised":
            raise refusal("signer_revoked", "compromised")
        if issued >= key.revoked_at:
            raise refusal("signer_revoked", f"{key.revocation} since {key.revoked_at.isoformat()}")
    if key.valid_until is not None and issued > key.valid_until + GRACE:
        raise refusal("signer_unknown", f"{key.fingerprint} was retired at {key.valid_until.isoformat()}")
    return replace(key, public=public)
