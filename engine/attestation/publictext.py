"""Text that may be published as it is: what evidence and logs say of a machine, and never where it can be reached."""

from __future__ import annotations

import re
from typing import Final

MAX_PUBLIC_TEXT: Final = 256

_PRINTABLE: Final = re.compile(r"[\x20-\x7e]*")
_PRIVATE: Final = re.compile(
    r"""
      :// | www\.                                   # addresses of the web
    | (?<![\d.]) \d{1,3} (?: \. \d{1,3} ){3} (?![\d.])  # IPv4
    | (?: [0-9a-f]{0,4} : ){3,} [0-9a-f]{0,4}       # IPv6
    | (?: ^ | [\s"'(=:,] ) [~]? / [\w.-]+ / ?       # a path from the root or a home
    | [A-Za-z]:\\ | \\\\                            # the same elsewhere
    | [\w.+-]+ @ [\w-]+ \. [\w.-]+                  # a mailbox, or a user on a host
    | PRIVATE\ KEY | ssh-(?:rsa|ed25519|dss)\s | ecdsa-sha2-
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_public_text(text: str) -> bool:
    """True for short printable ASCII without addresses, paths, mailboxes and key material."""
    return len(text) <= MAX_PUBLIC_TEXT and _PRINTABLE.fullmatch(text) is not None and not _PRIVATE.search(text)
