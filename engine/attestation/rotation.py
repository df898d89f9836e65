"""Changing the operator's keys so that others can follow the change: rotation and revocation.

Both change the key folder atomically, and leave a signed statement in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.attestation.revocation import Kind, read_statements, revocation_statement, rotation_statement
from engine.attestation.signers import TrustedKeys, successors
from engine.errors import UsageError
from engine.sealing.key_generations import PastKey
from engine.sealing.operator_keys import OperatorKeys, change
from engine.sealing.pem import fingerprint, key_id
from engine.system.clock import utc
from engine.wire import utc_text


@dataclass(frozen=True)
class KeyChange:
    """The result of a rotation or revocation.

    `keys` are those in use now; `publish` are the envelopes that others need to follow the change, the new one first;
    `rotated` is True if there is a new signing key.
    """

    keys: OperatorKeys
    publish: tuple[dict[str, Any], ...]
    rotated: bool


def _new_signing(keys: OperatorKeys, at: datetime) -> tuple[OperatorKeys, dict[str, Any]]:
    """The keys with a new signing key that the old one introduces; of the old one only the public half is kept."""
    private = Ed25519PrivateKey.generate()
    introduction = rotation_statement(keys.signing, private, at=at)
    past = PastKey(public=keys.ring.signing, made=keys.ring.signing_made, retired=utc_text(at))
    ring = msgspec.structs.replace(
        keys.ring,
        signing=private.public_key().public_bytes_raw().hex(),
        signing_made=utc_text(at),
        past_signing=(past, *keys.ring.past_signing),
        statements=(*keys.ring.statements, introduction),
    )
    return replace(keys, signing=private, ring=ring), introduction


def _new_recipient(keys: OperatorKeys, at: datetime) -> OperatorKeys:
    """The keys with a new recipient key; the old one still opens what was sealed to it."""
    private = X25519PrivateKey.generate()
    past = PastKey(public=keys.ring.recipient, made=keys.ring.recipient_made, retired=utc_text(at))
    ring = msgspec.structs.replace(
        keys.ring,
        recipient=private.public_key().public_bytes_raw().hex(),
        recipient_made=utc_text(at),
        past_recipients=(past, *keys.ring.past_recipients),
    )
    return replace(keys, recipient=private, ring=ring, past_recipients=(keys.recipient, *keys.past_recipients))


def rotate_keys(
    folder: Path,
    passphrase: str | None = None,
    *,
    new_passphrase: str | None = None,
    signing: bool = True,
    recipient: bool = True,
    now: datetime | None = None,
) -> KeyChange:
    """New keys in `folder`, under the same passphrase unless there is a new one.

    The private half of the old signing key is destroyed; runs under its delegations continue. Raises `SealingError`
    as `OperatorKeys.load` does, `passphrase_invalid`, `key_ring_full`.
    """
    at = now or utc()
    publish: list[dict[str, Any]] = []

    def rotate(keys: OperatorKeys) -> OperatorKeys:
        if recipient:
            keys = _new_recipient(keys, at)
        if signing:
            keys, introduction = _new_signing(keys, at)
            publish.append(introduction)
        return keys

    keys = change(folder, passphrase, rotate, new_passphrase=new_passphrase)
    return KeyChange(keys, tuple(publish), rotated=signing)


def revoke_key(
    folder: Path,
    passphrase: str | None = None,
    *,
    target: str | None = None,
    reason: Kind,
    text: str = "",
    now: datetime | None = None,
) -> KeyChange:
    """Revoke the signing key whose id is `target` (SHA-256 in hex; None is the current one).

    The current key revokes itself and is replaced by a new one in the same step; a former key, whose private half no
    longer exists, is revoked by the current one. Raises as `rotate_keys`, and `UsageError`: `key_unknown`,
    `key_revoked` (already, for a reason at least as severe), `revocation_text`.
    """
    at = now or utc()
    publish: list[dict[str, Any]] = []
    rotated = False

    def revoke(keys: OperatorKeys) -> OperatorKeys:
        nonlocal rotated
        public = _target(folder, keys, target, reason)
        revocation = revocation_statement(public, keys.signing, reason=reason, text=text, at=at)
        publish.append(revocation)
        if public == keys.signing_public:
            keys, introduction = _new_signing(keys, at)
            rotated = True
            if reason != "compromised":  # an introduction by a compromised key is not trusted
                publish.append(introduction)
        else:
            publish.extend(_links(keys.ring.statements, public))
        ring = msgspec.structs.replace(keys.ring, statements=(*keys.ring.statements, revocation))
        return replace(keys, ring=ring)

    keys = change(folder, passphrase, revoke)
    return KeyChange(keys, tuple(publish), rotated=rotated)


def _target(folder: Path, keys: OperatorKeys, target: str | None, reason: Kind) -> bytes:
    """The raw public key to revoke."""
    name = keys.key_id if target is None else target
    if name in {key_id(bytes.fromhex(public)) for public in keys.ring.recipient_keys}:
        raise UsageError(
            "This is a recipient key. It signs nothing, so it cannot be revoked.",
            "Replace it with `glasshouse key rotate --recipient`.",
            code="key_unknown",
        )
    known = TrustedKeys.from_home(folder).keys.get(name)
    if known is None or known.public is None:
        raise UsageError(
            "No signing key of this home has this fingerprint.",
            "Run `glasshouse key show` to list this home's keys.",
            code="key_unknown",
        )
    if known.revocation is not None and reason in (known.revocation, "superseded", "lost"):
        raise UsageError(
            f"The key {fingerprint(known.public)} is already revoked: {known.revocation}.",
            "Revoke it again only as `compromised`, the one reason that is more severe than the others.",
            code="key_revoked",
        )
    return known.public


def _links(statements: tuple[dict[str, Any], ...], public: bytes) -> list[dict[str, Any]]:
    """The rotations that lead from a key to its successors."""
    parsed = [(envelope, read_statements([envelope])) for envelope in statements]
    reached = successors(key_id(public), sum((content for _, content in parsed), start=read_statements([])))
    return [
        envelope
        for envelope, content in parsed
        for rotation in content.rotations
        if key_id(bytes.fromhex(rotation.old_public)) in reached
    ]
