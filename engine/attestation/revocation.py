"""Statements about operators' signing keys: one introduces the next (rotation), or is no longer to be trusted
(revocation). In-toto statements in DSSE envelopes, like receipts.

A file of such statements is canonical JSON lines, one envelope per line, so a file with one statement is a bare
envelope.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.dsse import peek_payload
from engine.attestation.reasons import refusal
from engine.attestation.statements import read_predicate, sign, statement
from engine.errors import RefusedError, UsageError, WireError
from engine.sealing.key_generations import is_utc_text
from engine.sealing.manifest import is_digest
from engine.sealing.pem import key_id
from engine.system.files import read_named
from engine.wire import canonical, parse, utc_text

ROTATION: Final = "urn:glasshouse:predicate:rotation:1"
REVOCATION: Final = "urn:glasshouse:predicate:revocation:1"
MAX_TEXT: Final = 200
MAX_FILE_BYTES: Final = 1024 * 1024

Kind = Literal["compromised", "superseded", "lost"]
KINDS: Final[tuple[Kind, ...]] = ("compromised", "superseded", "lost")


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From `rotated` (UTC) on `new_public` signs for the operator in place of `old_public` (raw, hex).

    Signed by both: the old key introduces the new one, which proves that its private half exists.
    """

    old_public: str
    new_public: str
    rotated: str

    @property
    def rotated_at(self) -> datetime:
        """`rotated` as a time."""
        return datetime.fromisoformat(self.rotated)


class Revocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing that `public` (raw, hex) signs from `revoked` (UTC) on is accepted; if `compromised`, nothing at any
    time.

    `signer` (raw, hex) made the statement: the key itself, or a successor of it. `text` is the operator's comment.
    """

    public: str
    signer: str
    reason: Kind
    text: str
    revoked: str

    @property
    def key_id(self) -> str:
        """The id of the revoked key."""
        return key_id(bytes.fromhex(self.public))

    @property
    def revoked_at(self) -> datetime:
        """`revoked` as a time."""
        return datetime.fromisoformat(self.revoked)


@dataclass(frozen=True)
class Statements:
    """Rotations and revocations whose signatures verify; whether their signers were entitled to them is not checked."""

    rotations: tuple[Rotation, ...] = ()
    revocations: tuple[Revocation, ...] = ()

    def __add__(self, other: Statements) -> Statements:
        """The statements of both."""
        return Statements(self.rotations + other.rotations, self.revocations + other.revocations)


def _is_printable_line(text: str) -> bool:
    return len(text) <= MAX_TEXT and text.isprintable()


def rotation_statement(old: Ed25519PrivateKey, new: Ed25519PrivateKey, *, at: datetime) -> dict[str, Any]:
    """The envelope by which `old` introduces `new`."""
    publics = [key.public_key().public_bytes_raw() for key in (old, new)]
    body = Rotation(old_public=publics[0].hex(), new_public=publics[1].hex(), rotated=utc_text(at))
    subjects = {"old-key": key_id(publics[0]), "new-key": key_id(publics[1])}
    return sign(statement(ROTATION, subjects, msgspec.to_builtins(body)), old, new)


def revocation_statement(
    public: bytes, signer: Ed25519PrivateKey, *, reason: Kind, text: str = "", at: datetime
) -> dict[str, Any]:
    """The envelope that revokes `public` from `at` on.

    Raises `UsageError` (`revocation_text`) if `text` has more than 200 characters or unprintable ones.
    """
    if not _is_printable_line(text):
        raise UsageError(
            f"The text of a revocation must be one line of at most {MAX_TEXT} printable characters.",
            "Shorten the text, and write it on one line.",
            code="revocation_text",
        )
    body = Revocation(
        public=public.hex(),
        signer=signer.public_key().public_bytes_raw().hex(),
        reason=reason,
        text=text,
        revoked=utc_text(at),
    )
    return sign(statement(REVOCATION, {"key": key_id(public)}, msgspec.to_builtins(body)), signer)


def _claimed_keys(envelope: object, *names: str) -> tuple[bytes, ...]:
    """The keys in the predicate's fields `names`, by which the envelope claims to be signed; not verified."""
    body = peek_payload(envelope).get("predicate")
    claimed = [body.get(name) for name in names] if isinstance(body, dict) else []
    if not claimed or not all(isinstance(public, str) and is_digest(public) for public in claimed):
        raise refusal("predicate_malformed")
    return tuple(bytes.fromhex(str(public)) for public in claimed)


def read_rotation(envelope: object) -> Rotation:
    """A rotation that both its keys have signed; raises `RefusedError` (`rotation_invalid`)."""
    try:
        old, new = _claimed_keys(envelope, "old_public", "new_public")
        body, subjects = read_predicate(envelope, (old, new), ROTATION, Rotation)
    except RefusedError as error:
        raise refusal("rotation_invalid", error.code) from error
    if subjects != {"old-key": key_id(old), "new-key": key_id(new)} or not is_utc_text(body.rotated):
        raise refusal("rotation_invalid", "predicate_malformed")
    return body


def read_revocation(envelope: object) -> Revocation:
    """A revocation signed by the key that it names as `signer`; raises `RefusedError` (`revocation_invalid`)."""
    try:
        (signer,) = _claimed_keys(envelope, "signer")
        body, subjects = read_predicate(envelope, signer, REVOCATION, Revocation)
    except RefusedError as error:
        raise refusal("revocation_invalid", error.code) from error
    names_key = is_digest(body.public) and subjects == {"key": body.key_id}
    if not names_key or not is_utc_text(body.revoked) or not _is_printable_line(body.text):
        raise refusal("revocation_invalid", "predicate_malformed")
    return body


def read_statements(envelopes: Iterable[object]) -> Statements:
    """Rotations and revocations; raises `RefusedError` (`rotation_invalid`, `revocation_invalid`)."""
    rotations, revocations = [], []
    for envelope in envelopes:
        try:
            kind = peek_payload(envelope).get("predicateType")
        except RefusedError as error:
            raise refusal("revocation_invalid", error.code) from error
        if kind == ROTATION:
            rotations.append(read_rotation(envelope))
        else:
            revocations.append(read_revocation(envelope))
    return Statements(tuple(rotations), tuple(revocations))


def statements_to_bytes(envelopes: Iterable[dict[str, Any]]) -> bytes:
    """A file of statements, one canonical envelope per line."""
    return b"".join(canonical(envelope) + b"\n" for envelope in envelopes)


def read_revocations(paths: Sequence[Path]) -> Statements:
    """The statements in files that the user names: revocations, and the rotations from revoked keys to their signers.

    Raises `RefusedError` (`revocation_invalid`, `rotation_invalid`) and `UsageError` (`revocation_unreadable`).
    """
    envelopes: list[object] = []
    for path in paths:
        try:
            data = read_named(path, MAX_FILE_BYTES)
        except OSError as error:
            raise UsageError(
                f"The revocation file {path} cannot be read: {error.strerror}.",
                "Check its path.",
                code="revocation_unreadable",
            ) from error
        if not data.strip():
            raise refusal("revocation_invalid", f"{path.name} is empty")
        try:
            envelopes += [parse(line) for line in data.splitlines() if line.strip()]
        except WireError as error:
            raise refusal("revocation_invalid", f"{path.name} does not hold one envelope per line") from error
    return read_statements(envelopes)
