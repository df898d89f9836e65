"""Changing the operator's keys so that others can follow: rotation and revocation.

Both change the key folder whole or not at all, and leave a signed statement in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
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
from engine.wire import utc_text


@dataclass(frozen=True)
class Changed:
    """What a change came to.

    `keys` are those in use now; `publish` are the envelopes that a stranger needs to follow, the new one first;
    `rotated` tells whether there is a new signing key.
    """

    keys: OperatorKeys
    publish: tuple[dict[str, Any], ...]
    rotated: bool


def _new_signing(keys: OperatorKeys, at: datetime) -> tuple[OperatorKeys, dict[str, Any]]:
    """The keys with a new signing key, introduced by the old one, of which the public half stays."""
    private = Ed25519PrivateKey.generate()
    introduced = rotation_statement(keys.signing, private, at=at)
    past = PastKey(public=keys.ring.signing, made=keys.ring.signing_made, retired=utc_text(at))
    ring = msgspec.structs.replace(
        keys.ring,
        signing=private.public_key().public_bytes_raw().hex(),
        signing_made=utc_text(at),
        past_signing=(past, *keys.ring.past_signing),
        statements=(*keys.ring.statements, introduced),
    )
    return replace(keys, signing=private, ring=ring), introduced


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
) -> Changed:
    """New keys in `folder`, under the same passphrase unless there is a new one.

    The private half of the old signing key is destroyed; runs that it has delegated to go on. Raises `SealingError`
    as `OperatorKeys.load` does, `passphrase_invalid`, `key_ring_full`.
    """
    at = now or datetime.now(UTC)
    introduced: list[dict[str, Any]] = []

    def changed(keys: OperatorKeys) -> OperatorKeys:
        if recipient:
            keys = _new_recipient(keys, at)
        if signing:
            keys, made = _new_signing(keys, at)
            introduced.append(made)
        return keys

    keys = change(folder, passphrase, changed, new_passphrase=new_passphrase)
    return Changed(keys, tuple(introduced), rotated=signing)


def revoke_key(
    folder: Path,
    passphrase: str | None = None,
    *,
    target: str | None = None,
    reason: Kind,
    text: str = "",
    now: datetime | None = None,
) -> Changed:
    """Revoke the signing key whose id is `target` (SHA-256 in hex; None is the present one).

    The present key revokes itself and gives way to a new one in the same step; a former key, whose private half is
    gone, is revoked by the present one. Raises as `rotate_keys`, and `UsageError`: `key_unknown`, `key_revoked`
    (already, as hard), `revocation_text`.
    """
    at = now or datetime.now(UTC)
    publish: list[dict[str, Any]] = []
    rotated = False

    def changed(keys: OperatorKeys) -> OperatorKeys:
        nonlocal rotated
        public = _target(folder, keys, target, reason)
        made = revocation_statement(public, keys.signing, reason=reason, text=text, at=at)
        publish.append(made)
        if public == keys.signing_public:
            keys, introduced = _new_signing(keys, at)
            rotated = True
            if reason != "compromised":  # a compromised key introduces nobody
                publish.append(introduced)
        else:
            publish.extend(_links(keys.ring.statements, public))
        ring = msgspec.structs.replace(keys.ring, statements=(*keys.ring.statements, made))
        return replace(keys, ring=ring)

    keys = change(folder, passphrase, changed)
    return Changed(keys, tuple(publish), rotated=rotated)


def _target(folder: Path, keys: OperatorKeys, target: str | None, reason: Kind) -> bytes:
    """The raw public key to revoke."""
    name = keys.key_id if target is None else target
    if name in {key_id(bytes.fromhex(public)) for public in keys.ring.recipient_keys}:
        raise UsageError(
            "This is a recipient key: it signs nothing, so nothing of it can be revoked.",
            "Replace it by `glasshouse key rotate --recipient`.",
            code="key_unknown",
        )
    known = TrustedKeys.from_home(folder).keys.get(name)
    if known is None or known.public is None:
        raise UsageError(
            "No signing key of this home has this fingerprint.",
            "`glasshouse key show` lists them.",
            code="key_unknown",
        )
    if known.revocation is not None and reason in (known.revocation, "superseded", "lost"):
        raise UsageError(
            f"The key {fingerprint(known.public)} is revoked already: {known.revocation}.",
            "Only `compromised` says more than another reason.",
            code="key_revoked",
        )
    return known.public


def _links(statements: tuple[dict[str, Any], ...], public: bytes) -> list[dict[str, Any]]:
    """The rotations that lead from a key to its successors."""
    read = [(made, read_statements([made])) for made in statements]
    reached = successors(key_id(public), sum((found for _, found in read), start=read_statements([])))
    return [
        made
        for made, found in read
        for rotation in found.rotations
        if key_id(bytes.fromhex(rotation.old_public)) in reached
    ]
