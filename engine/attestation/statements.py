"""In-toto Statements v1 in DSSE envelopes: the format of receipts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from engine.attestation.dsse import open_envelope, seal_envelope
from engine.attestation.reasons import refusal
from engine.errors import WireError
from engine.sealing.manifest import is_digest
from engine.wire import canonical, parse

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
MAX_SUBJECTS: Final = 64

RunId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)")]
Time = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$(?!\n)")]
"""A moment in UTC exactly as `engine.wire.utc_text` writes it."""

PredicateT = TypeVar("PredicateT", bound=msgspec.Struct)


class _Digests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str


class _Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    digest: _Digests


class Statement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """An in-toto Statement v1. `named` maps the subjects' names to SHA-256 in hex."""

    type: str = msgspec.field(default=STATEMENT_TYPE, name="_type")
    subject: tuple[_Subject, ...]
    predicate_type: str
    predicate: dict[str, Any]

    @property
    def named(self) -> dict[str, str]:
        """The subjects' digests by name."""
        return {subject.name: subject.digest.sha256 for subject in self.subject}


def statement(predicate_type: str, subjects: Mapping[str, str], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """A statement about `subjects` (name -> SHA-256 in hex) as builtins."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())],
        "predicateType": predicate_type,
        "predicate": dict(predicate),
    }


def sign(content: Mapping[str, Any], *privates: Ed25519PrivateKey) -> dict[str, Any]:
    """The envelope of a statement, signed by every key given."""
    return seal_envelope(canonical(dict(content)), PAYLOAD_TYPE, *privates)


def unverified_payload(envelope: Mapping[str, Any]) -> Any:
    """The JSON in an envelope, its signatures unchecked; raises `RefusedError` (`envelope_malformed`)."""
    try:
        return parse(base64.b64decode(str(envelope["payload"]), validate=True))
    except (KeyError, ValueError, WireError) as error:
        raise refusal("envelope_malformed") from error


def open_statement(envelope: object, publics: bytes | Sequence[bytes], predicate_type: str) -> Statement:
    """The statement of an envelope that exactly `publics` (raw keys) have signed.

    Raises `RefusedError`: `envelope_*`, `statement_malformed`, `predicate_type`.
    """
    keys = (publics,) if isinstance(publics, bytes) else tuple(publics)
    payload = open_envelope(envelope, PAYLOAD_TYPE, keys)
    try:
        opened = msgspec.convert(parse(payload), Statement, strict=True)
    except (WireError, ValueError) as error:  # msgspec raises ValueError, also for a lone surrogate
        raise refusal("statement_malformed") from error
    subjects = opened.subject
    named = len(subjects) <= MAX_SUBJECTS and len(opened.named) == len(subjects)
    if opened.type != STATEMENT_TYPE or not named or not all(map(is_digest, opened.named.values())):
        raise refusal("statement_malformed")
    if opened.predicate_type != predicate_type:
        raise refusal("predicate_type")
    return opened


def verify(envelope: object, public: bytes | Sequence[bytes], predicate_type: str) -> dict[str, Any]:
    """The predicate of an envelope, checked as `open_statement` does."""
    return open_statement(envelope, public, predicate_type).predicate


def read_predicate(
    envelope: object, public: bytes | Sequence[bytes], predicate_type: str, kind: type[PredicateT]
) -> tuple[PredicateT, dict[str, str]]:
    """The predicate as `kind`, and the subjects by name, which the caller compares with the predicate.

    Raises `RefusedError` as `open_statement` does, and `predicate_malformed`.
    """
    opened = open_statement(envelope, public, predicate_type)
    try:
        return msgspec.convert(opened.predicate, kind, strict=True), opened.named
    except ValueError as error:
        raise refusal("predicate_malformed") from error
