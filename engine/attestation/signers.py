"""Which signers are accepted: the operators' signing keys that a verifier trusts, their rotations and revocations, and
the decision about one signature.

Nothing here needs a passphrase, a private key, a database or a network.

A verifier calls:

    trusted = TrustedKeys.from_home(home / "keys") | TrustedKeys.given(trusted_key(text) for text in trust_options)
    revocations = read_revocations(revocation_files)
    judge_signer(operator_public, delegation_issued, trusted=trusted, revocations=revocations)

The rules:

- A key is accepted if it is trusted itself, or if a trusted key introduced it by a rotation while in use and introduced
  no other key. If a key introduced two, neither is accepted through it: one of them may be a thief's.
- A retired key is accepted for delegations issued until it was retired, and one minute longer, because a run may have
  been starting.
- `compromised`: nothing that the key signed is accepted, whatever its date, because a thief chooses the date. Nor is a
  key that it introduced, unless that key is trusted itself.
- `superseded`, `lost`: delegations issued before the revocation and rotations up to it are still accepted.
- A key may be revoked by itself, by a successor, or by any key of the same home. Of two revocations the more severe one
  applies.
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
from engine.system.files import read_named

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
    """A signing key and what is known about it. `public` is raw, None if only a fingerprint was given.

    Times are UTC: it signs from `valid_from` until `valid_until`; None means without a known limit.
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
        """`revoked` takes precedence over `retired`, and `retired` over `current`."""
        if self.revocation is not None:
            return "revoked"
        return "current" if self.valid_until is None else "retired"

    @property
    def fingerprint(self) -> str:
        """The key's id as users see it."""
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

    def _with_revocation(self, revocation: Revocation) -> TrustedKey:
        """The key with a revocation; of two the more severe one is kept, then the earlier one."""
        if self.revocation is not None and self.revoked_at is not None:
            severe, new_is_severe = self.revocation == "compromised", revocation.reason == "compromised"
            if severe > new_is_severe or (severe == new_is_severe and self.revoked_at <= revocation.revoked_at):
                return self
        return replace(
            self, revoked_at=revocation.revoked_at, revocation=revocation.reason, revocation_text=revocation.text
        )


def _home_key(public: str, made: str, retired: str | None) -> TrustedKey:
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
    """The keys that a verifier trusts, by key id, and the known statements about them."""

    keys: dict[str, TrustedKey]
    statements: Statements = NOTHING

    @classmethod
    def from_home(cls, folder: Path) -> TrustedKeys:
        """The signing keys, current and past, of a key folder (`home / "keys"`); none if there is no folder.

        Raises `SealingError` (`key_invalid`, `key_permissions`, `key_folder_unusable`) and `RefusedError`
        (`rotation_invalid`, `revocation_invalid`) if the folder's files are damaged.
        """
        ring = read_ring(folder)
        if ring is None:
            return cls({})
        keys = [_home_key(ring.signing, ring.signing_made, None)]
        keys += [_home_key(past.public, past.made, past.retired) for past in ring.past_signing]
        return _apply_revocations(cls({key.key_id: key for key in keys}, read_statements(ring.statements)))

    @classmethod
    def given(cls, keys: Iterable[TrustedKey]) -> TrustedKeys:
        """The trust in single keys, as `trusted_key` parses them."""
        return cls({}) | cls({key.key_id: key for key in keys})

    def __or__(self, other: TrustedKeys) -> TrustedKeys:
        """The keys of both, each with what is known about it in either."""
        merged = dict(self.keys)
        for name, key in other.keys.items():
            merged[name] = merged[name]._merged(key) if name in merged else key
        return _apply_revocations(TrustedKeys(merged, self.statements + other.statements))

    def find(self, public: bytes) -> TrustedKey | None:
        """The key, if it is trusted."""
        return self.keys.get(key_id(public))


def trust_line(public: bytes) -> str:
    """A signing key as one line, in the form that `trusted_key` parses."""
    return f"ed25519:{public.hex()}"


def _not_a_key(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text} cannot be used as a trusted key: {why}.",
        "Give a fingerprint (SHA256:...), a PEM file of an Ed25519 public key, or what `glasshouse key show --public` "
        "prints.",
        code="trust_invalid",
    )


def _from_text(text: str) -> TrustedKey | None:
    if match := _FINGERPRINT.fullmatch(text):
        return TrustedKey(match[1])
    if match := _PUBLIC.fullmatch(text):
        public = bytes.fromhex(match[1])
        return TrustedKey(key_id(public), public)
    return None


def trusted_key(text_or_path: str | Path) -> TrustedKey:
    """A key that the user trusts: given as a fingerprint with or without `SHA256:` (64 hex digits), as the line that
    `key show --public` prints, or as a file with either of them or with an Ed25519 public key in PEM.

    Raises `UsageError` (`trust_invalid`).
    """
    if isinstance(text_or_path, str) and (key := _from_text(text_or_path.strip())):
        return key
    path = Path(text_or_path)
    shown = str(path) if str(path).isprintable() and len(str(path)) <= 200 else "This"
    try:
        if not path.is_file():
            raise _not_a_key(shown, "it is neither a key in a known form nor an existing file")
        data = read_named(path, _MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise _not_a_key(shown, "it cannot be read") from error
    if b"PRIVATE KEY" in data:
        raise _not_a_key(shown, "it holds a private key, which only its owner should have")
    if b"-----BEGIN" in data:
        return _from_pem(data, shown)
    try:
        key = _from_text(data.decode("ascii").strip()) if len(data) <= _MAX_FILE_BYTES else None
    except UnicodeDecodeError:
        key = None
    if key is None:
        raise _not_a_key(shown, "it holds neither a fingerprint nor a public key")
    return key


def _from_pem(data: bytes, shown: str) -> TrustedKey:
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _not_a_key(shown, "its PEM does not hold a public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(shown, "its key is not an Ed25519 key, and only those sign rows")
    public = key.public_bytes_raw()
    return TrustedKey(key_id(public), public)


def successors(key: str, statements: Statements) -> frozenset[str]:
    """Ids of `key` itself, of the keys that it introduced, of those that they introduced, and so on."""
    reached, pending = {key}, [key]
    while pending:
        public_id = pending.pop()
        for rotation in statements.rotations:
            new = key_id(bytes.fromhex(rotation.new_public))
            if key_id(bytes.fromhex(rotation.old_public)) == public_id and new not in reached:
                reached.add(new)
                pending.append(new)
    return frozenset(reached)


def _may_revoke(trusted: TrustedKeys, revocation: Revocation) -> bool:
    signer, revoked = key_id(bytes.fromhex(revocation.signer)), trusted.keys.get(revocation.key_id)
    if revoked is not None and revoked.home and signer in trusted.keys and trusted.keys[signer].home:
        return True
    return signer in successors(revocation.key_id, trusted.statements)


def _apply_revocations(trusted: TrustedKeys) -> TrustedKeys:
    """The keys with every revocation applied whose signer was entitled to it."""
    keys = dict(trusted.keys)
    for revocation in trusted.statements.revocations:
        if revocation.key_id in keys and _may_revoke(trusted, revocation):
            keys[revocation.key_id] = keys[revocation.key_id]._with_revocation(revocation)
    return TrustedKeys(keys, trusted.statements)


def _may_introduce(key: TrustedKey, at: datetime) -> bool:
    if key.revocation == "compromised":
        return False
    in_use = key.valid_until is None or at <= key.valid_until + GRACE
    return in_use and (key.revoked_at is None or at <= key.revoked_at)


def follow_rotations(trusted: TrustedKeys, statements: Statements = NOTHING) -> TrustedKeys:
    """The trusted keys and the keys that they introduced, with all known revocations applied.

    A key that introduced another is retired from then on. Somebody who stole a retired key can still sign with it:
    therefore, if a key introduced two others, neither is trusted through it, and keys of this home introduce no key
    from outside it.
    """
    known = trusted | TrustedKeys({}, statements)
    pairs = {(rotation.old_public, rotation.new_public) for rotation in known.statements.rotations}
    forked = {old for old, count in Counter(old for old, _ in pairs).items() if count > 1}
    has_grown = True
    while has_grown:
        has_grown = False
        for rotation in known.statements.rotations:
            old, new = bytes.fromhex(rotation.old_public), bytes.fromhex(rotation.new_public)
            introducer = known.find(old)
            if introducer is None or not _may_introduce(introducer, rotation.rotated_at):
                continue
            if introducer.home or rotation.old_public in forked:
                continue
            introduced = TrustedKeys(
                {
                    introducer.key_id: TrustedKey(introducer.key_id, old, valid_until=rotation.rotated_at),
                    key_id(new): TrustedKey(key_id(new), new, valid_from=rotation.rotated_at),
                }
            )
            merged = known | introduced
            has_grown = has_grown or merged.keys != known.keys
            known = merged
    return known


def judge_signer(
    public: bytes,
    issued: datetime,
    *,
    trusted: TrustedKeys,
    revocations: Statements = NOTHING,
) -> TrustedKey:
    """The trusted key for `public` (raw), if what it signed at `issued` is accepted.

    `issued` is the time that its delegation to the run's key states, with a time zone. `revocations` are those that the
    user gave; those of `trusted` apply too. Raises `RefusedError`: `signer_unknown`, `signer_revoked`;
    `revocation_invalid` if a revocation of this key was signed by a key that is not entitled to it.
    """
    if issued.tzinfo is None:
        raise refusal("predicate_malformed")
    known = follow_rotations(trusted, revocations)
    for revocation in known.statements.revocations:
        if revocation.public == public.hex() and not _may_revoke(known, revocation):
            raise refusal("revocation_invalid", "its signer is not a successor of the key")
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
