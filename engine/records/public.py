"""What of a run's logs is published: every event in its form (`engine.events`), without a text that locates.

The runner takes in nothing else from an allocation.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.attestation.public_text import is_public_text
from engine.attestation.statements import stated
from engine.errors import RefusedError
from engine.events import COMMITTED, Chain

_ENCODED: Final = frozenset({"receipt", "token", "attesterKey", "nonce"})  # judged by their own forms
_TYPES: Final = frozenset({"_type", "predicateType"})


def is_public(chain: Chain, event: str, body: dict[str, Any]) -> bool:
    """True when the event has exactly the fields that are published, each in its form, and no text that locates.

    `body` is what its hash covers (`engine.wire.committed`).
    """
    kind = COMMITTED[chain].get(event)
    if kind is None:
        return False
    try:
        msgspec.convert(body, kind, strict=True)
        signed = stated(body["receipt"]) if "receipt" in body else {}
    except (msgspec.ValidationError, RefusedError):
        return False
    return all(map(is_public_text, (*_texts(body), *_texts(signed))))


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        shown = {name: inner for name, inner in value.items() if name not in _ENCODED | _TYPES}
        return [text for name, inner in shown.items() for text in (str(name), *_texts(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return []
