"""Text that may be published: descriptions of a machine, but no addresses, paths or credentials to reach it by."""

from __future__ import annotations

import re
from typing import Final

MAX_PUBLIC_TEXT: Final = 256

_PRINTABLE: Final = re.compile(r"[\x20-\x7e]*")
_PRIVATE: Final = re.compile(
    r"""
      :// | www\.                                   # web addresses
    | (?<! [\d.] ) \d{1,3} (?: \. \d{1,3} ){3} (?! \d | \.\d )  # IPv4
    | (?: [0-9a-f]{0,4} : ){3,} [0-9a-f]{0,4} | ::  # IPv6
    | (?: ^ | [^\w\s] | \s ) / [\w.-]+ | [~$] [\w]* / | \.\. /  # a path from the root, a home or a parent folder
    | [\w.-]+ / [\w.-]+ /                           # or a relative path of several parts
    | [A-Za-z]:\\ | \\\\                            # Windows paths
    | [\w.+-]+ @ [\w.-]+                            # a mail address, or a user on a host
    | (?: [a-z\d-]+ \. ){2,} [a-z]{2,}              # a host name
    | \b (?: hf | rpa | sk | ghp | glpat | xox[a-z] ) [_-] \w  # access tokens, by the prefixes of hubs and providers
    | PRIVATE\ KEY | ssh-(?:rsa|ed25519|dss)\s | ecdsa-sha2-
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_public_text(text: str) -> bool:
    """True for short printable ASCII without addresses, paths, mail addresses and key material."""
    if text.isascii() and text.isalnum():  # digests and names, which are most texts: none of the patterns can match
        return len(text) <= MAX_PUBLIC_TEXT
    return len(text) <= MAX_PUBLIC_TEXT and _PRINTABLE.fullmatch(text) is not None and not _PRIVATE.search(text)
