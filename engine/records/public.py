"""What is published of a run's logs: typed events (`engine.events`) without paths, addresses or host names.

The runner accepts nothing else from an allocation.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.attestation.public_text import is_public_text
from engine.attestation.statements import unverified_payload
from engine.errors import RefusedError
from engine.events import COMMITTED, Chain

_ENCODED: Final = frozenset({"receipt", "token", "attesterKey", "nonce"})  # checked by their own types
_ANSWER: Final = "answer"
"""What a model says to a question about public data; it may be in any language and name anything."""
_UNSHOWN: Final = _ENCODED | {"_type", "predicateType", _ANSWER}


def is_public(chain: Chain, event: str, body: dict[str, Any]) -> bool:
    """True when the event has exactly its published fields, each of its type, and no text with a path or an address.

    `body` is what the event's hash covers (`engine.wire.committed`).
    """
    kind = COMMITTED[chain].get(event)
    if kind is None:
        return False
    try:
        msgspec.convert(body, kind, strict=True)
        signed = unverified_payload(body["receipt"]) if "receipt" in body else {}
    except (msgspec.ValidationError, RefusedError):
        return False
    if not str(body.get(_ANSWER) or "").isprintable():
        return False
    return all(map(is_public_text, (*_texts(body), *_texts(signed))))


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        shown = {name: inner for name, inner in value.items() if name not in _UNSHOWN}
        return [text for name, inner in shown.items() for text in (str(name), *_texts(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return []
