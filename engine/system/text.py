"""Foreign text made safe to write: none of it can move a cursor, start a sequence or turn the reading direction."""

from __future__ import annotations

import re
from typing import Final

_WRITES_NOTHING: Final = re.compile(r"[^\x20-\x7e]")


def visible(text: str, *, keep: str = "") -> str:
    """`text` with every character that is not printable escaped (`\\x1b`, `\\u202e`), except those in `keep`.

    Not printable are all of Unicode's categories C (controls C0 and C1, DEL, bidi overrides, private use) and Z but the
    space: what a terminal could take for a command, or what would show text that is not there.
    """

    def shown(match: re.Match[str]) -> str:
        char = match[0]
        return char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii")

    return _WRITES_NOTHING.sub(shown, text)


def visible_json(document: bytes) -> bytes:
    """JSON (UTF-8) whose strings have such characters as `\\uXXXX`: harmless to show, and the same text to a parser.

    Outside its strings JSON has no such characters but line breaks, which stay.
    """

    def escaped(match: re.Match[str]) -> str:
        char = match[0]
        if char.isprintable() or char == "\n":
            return char
        units = char.encode("utf-16-be")
        return "".join(f"\\u{int.from_bytes(units[place : place + 2]):04x}" for place in range(0, len(units), 2))

    return _WRITES_NOTHING.sub(escaped, document.decode("utf-8")).encode("utf-8")
