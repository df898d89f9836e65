"""The patterns that a scan searches for, and their layout in a memfd: `GHP1`, a count, then each pattern.

A pattern is its class and length, then its bytes. The writer puts them directly into a shared map, without a
Python copy; the scanner copies them into its own store and zeroes the map.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from engine.errors import RunError

MIN_BYTES: Final = 16
MAX_BYTES: Final = 4096
MIN_DISTINCT: Final = 6
MAX_PATTERNS: Final = 1024
STORE_BYTES: Final = 1024 * 1024
KEY_BYTES: Final = 32

CONTENT_KEY: Final = "content_key"
RELEASE_KEY: Final = "release_key"
ADAPTER_KEY: Final = "adapter_key"
CANARY_ROW: Final = "canary_row"
WEIGHTS: Final = "weights"
ADAPTER: Final = "adapter"
MOMENTS: Final = "moments"
HALF: Final = "_half"

_MAGIC: Final = b"GHP1"
_HEAD: Final = struct.Struct(">4sH")
_ITEM: Final = struct.Struct(">BH")
_CLASS: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")

Item = tuple[str, memoryview]


def usable(data: memoryview | bytes | bytearray) -> bool:
    """Whether a window is long and varied enough that a hit means something."""
    return MIN_BYTES <= len(data) <= MAX_BYTES and len(set(data)) >= MIN_DISTINCT


def key_items(name: str, key: memoryview) -> Iterator[Item]:
    """A 32-byte key under `name`, and its two halves under `<name>_half`."""
    middle = len(key) // 2
    yield name, key
    yield name + HALF, key[:middle]
    yield name + HALF, key[middle:]


def write(target: memoryview, items: Iterable[Item]) -> dict[str, int]:
    """Write patterns into a writable map; returns how many of each class; raises `RunError` (`pattern_*`)."""
    counts: Counter[str] = Counter()
    at = _HEAD.size
    for name, data in items:
        if not _CLASS.fullmatch(name):
            raise RunError("A pattern's class has an invalid name.", code="pattern_invalid")
        if not usable(data):
            raise RunError(f"A pattern of class {name} is too short or too uniform.", code="pattern_weak")
        label = name.encode()
        end = at + _ITEM.size + len(label) + len(data)
        if end > len(target) or counts.total() == MAX_PATTERNS:
            raise RunError("The patterns do not fit into their memory file.", code="pattern_overflow")
        _ITEM.pack_into(target, at, len(label), len(data))
        at += _ITEM.size
        target[at : at + len(label)] = label
        target[end - len(data) : end] = data
        at = end
        counts[name] += 1
    _HEAD.pack_into(target, 0, _MAGIC, counts.total())
    return dict(sorted(counts.items()))


def read(source: memoryview) -> Iterator[Item]:
    """The patterns of a map, as views of it; raises `RunError` (`pattern_invalid`, `pattern_weak`)."""
    broken = RunError("The patterns cannot be read.", code="pattern_invalid")
    if len(source) < _HEAD.size:
        raise broken
    magic, count = _HEAD.unpack_from(source)
    if magic != _MAGIC or count > MAX_PATTERNS:
        raise broken
    at = _HEAD.size
    for _ in range(count):
        if at + _ITEM.size > len(source):
            raise broken
        label_size, size = _ITEM.unpack_from(source, at)
        at += _ITEM.size
        end = at + label_size + size
        if end > len(source):
            raise broken
        name = bytes(source[at : at + label_size]).decode("ascii", "replace")
        data = source[end - size : end]
        if not _CLASS.fullmatch(name):
            raise broken
        if not usable(data):
            raise RunError(f"A pattern of class {name} is too short or too uniform.", code="pattern_weak")
        yield name, data
        at = end
