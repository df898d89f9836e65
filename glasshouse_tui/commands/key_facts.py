"""What is known about the operator's keys without a passphrase, as JSON and as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glasshouse_tui.commands.output import local_time


def key_facts(folder: Path) -> dict[str, Any]:
    """Current and former keys, with fingerprints, dates and states; `present` is false if there are none.

    Raises `SealingError` as `engine.sealing.operator_keys.status` does, and `RefusedError` for damaged statements.
    """
    from engine.sealing.key_generations import read_ring
    from engine.sealing.operator_keys import RECIPIENT_FILE, SIGNING_FILE, past_recipient_file, status

    keys, ring = status(folder), read_ring(folder)
    facts: dict[str, Any] = {
        "present": keys.present,
        "encrypted": keys.encrypted if keys.present else None,
        "created": keys.created,
        "folder": str(folder),
        "keys": [],
        "former": [],
    }
    if not keys.present or ring is None:
        return facts
    signing = _signing(folder)
    former = [signing[past.public] for past in ring.past_signing]
    recipients = [
        _recipient(past.public, past.made, past.retired, folder / past_recipient_file(past.public))
        for past in ring.past_recipients
    ]
    return facts | {
        "keys": [
            signing[ring.signing] | {"path": str(folder / SIGNING_FILE)},
            _recipient(ring.recipient, ring.recipient_made, None, folder / RECIPIENT_FILE),
        ],
        "former": former + recipients,
    }


def _signing(folder: Path) -> dict[str, dict[str, Any]]:
    """The signing keys by public key, raw, in hex."""
    from engine.attestation.signers import TrustedKeys

    return {
        (key.public or b"").hex(): {
            "name": "signing",
            "algorithm": "Ed25519",
            "fingerprint": key.fingerprint,
            "state": key.state,
            "made": _stamp(key.valid_from),
            "retired": _stamp(key.valid_until),
            "revoked": _stamp(key.revoked_at),
            "reason": key.revocation,
            "text": key.revocation_text or None,
            "path": None,
        }
        for key in TrustedKeys.from_home(folder).keys.values()
    }


def _stamp(moment: Any) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _recipient(public: str, made: str, retired: str | None, path: Path) -> dict[str, Any]:
    from engine.sealing.pem import fingerprint

    return {
        "name": "recipient",
        "algorithm": "X25519",
        "fingerprint": fingerprint(bytes.fromhex(public)),
        "state": "current" if retired is None else "retired",
        "made": made,
        "retired": retired,
        "revoked": None,
        "reason": None,
        "text": None,
        "path": str(path),
    }


def facts_text(facts: dict[str, Any]) -> str:
    """The facts as text."""
    lines = []
    for item in facts["keys"]:
        lines += [f"{item['name']:<11}{item['algorithm']:<9}{item['fingerprint']}", f"{'':<11}{_life(item)}"]
        lines.append(f"{'':<11}{item['path']}")
    if facts["former"]:
        lines.append("former keys")
    for item in facts["former"]:
        lines += [f"{item['name']:<11}{item['algorithm']:<9}{item['fingerprint']}", f"{'':<11}{_life(item)}"]
    return "\n".join([*lines, "protected by a passphrase" if facts["encrypted"] else "not protected by a passphrase"])


def _life(item: dict[str, Any]) -> str:
    parts = [f"{item['state']}, created {local_time(item['made'])}"]
    if item["retired"]:
        parts.append(f"retired {local_time(item['retired'])}")
    if item["revoked"]:
        why = f"{item['reason']}: {item['text']}" if item["text"] else item["reason"]
        parts.append(f"revoked {local_time(item['revoked'])} ({why})")
    return ", ".join(parts)
