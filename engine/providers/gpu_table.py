"""The memory of common GPUs by name, for machines that no provider's list describes."""

from __future__ import annotations

import re
from typing import Final

_GIB: Final = 1024**3
_STATED: Final = re.compile(r"\b(\d{1,3}) ?GB\b", re.IGNORECASE)
_TABLE: Final = (
    ("H200", 141), ("H100", 94), ("A100", 80), ("B200", 180), ("GH200", 96), ("MI300X", 192),
    ("L40S", 48), ("L40", 48), ("L4", 24), ("A40", 48), ("A30", 24), ("A10G", 24), ("A10", 24), ("A16", 16), ("A2", 16),
    ("RTX PRO 6000", 96), ("RTX 6000 ADA", 48), ("RTX 5000 ADA", 32), ("RTX 4500 ADA", 24), ("RTX 4000 ADA", 20),
    ("RTX 2000 ADA", 16), ("RTX A6000", 48), ("RTX A5500", 24), ("RTX A5000", 24), ("RTX A4500", 20), ("RTX A4000", 16),
    ("RTX 5090", 32), ("RTX 5080", 16), ("RTX 4090", 24), ("RTX 4080", 16), ("RTX 3090", 24), ("RTX 3080 TI", 12),
    ("RTX 3080", 12), ("RTX 3070", 8), ("RTX 2080 TI", 11), ("TITAN RTX", 24), ("V100", 32), ("P100", 16), ("T4", 16),
)  # fmt: skip
"""GB by a part of the name. More specific names come first; where a name has several sizes, the largest counts, so that
nothing is refused that may fit."""


def memory_of(name: str) -> int | None:
    """Bytes of memory of a GPU, by the size in its name or the table; None if neither knows it."""
    stated = _STATED.search(name)
    if stated is not None:
        return int(stated[1]) * _GIB
    upper = name.upper().replace("GEFORCE ", "")
    for part, size in _TABLE:
        if re.search(rf"\b{re.escape(part)}\b", upper):
            return size * _GIB
    return None
