"""The patterns that a scan searches for, and their layout in a memfd: `GHF1`, a count, a salt, then each pattern.

A pattern is never handed over itself. Its holder writes a fingerprint of it: a few of its bytes, the anchor, for which
the scanner searches, and a keyed BLAKE2b of the whole, by which it confirms what it finds. So the scanner, which lives
through the whole segment, has no key at any time.

Any filter that lets one position in 2^n pass tells n bits of what it looks for, a rolling hash as much as literal
bytes; literal bytes are searched at the speed of `memmem`. Of a key the anchor is three bytes: whoever reads the
scanner's memory would have to try 2^104 values for half a key. Windows of the payload are repetitive and get a longer
anchor.
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from engine.errors import RunError

MIN_BYTES: Final = 16
MAX_BYTES: Final = 4096
MIN_DISTINCT: Final = 6
MAX_PATTERNS: Final = 1024
STORE_BYTES: Final = 1024 * 1024
KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
KEY_ANCHOR: Final = 3
ANCHOR: Final = 12

CONTENT_KEY: Final = "content_key"
RELEASE_KEY: Final = "release_key"
ADAPTER_KEY: Final = "adapter_key"
CANARY_ROW: Final = "canary_row"
WEIGHTS: Final = "weights"
ADAPTER: Final = "adapter"
MOMENTS: Final = "moments"
HALF: Final = "_half"

_MAGIC: Final = b"GHF1"
_DIGEST_BYTES: Final = 32
_HEAD: Final = struct.Struct(f">4sH{SALT_BYTES}s")
_ITEM: Final = struct.Struct(f">BHHB{_DIGEST_BYTES}s")
_SALT: Final = slice(_HEAD.size - SALT_BYTES, _HEAD.size)
_CLASS: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")

Item = tuple[str, memoryview]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A pattern of class `name` and `size` bytes: `anchor` is what stands at `offset` in it.

    The views are of the map that it was read from, in which it ends at `end`.
    """

    name: str
    size: int
    offset: int
    anchor: memoryview
    digest: memoryview
    salt: memoryview
    end: int

    def matches(self, data: memoryview) -> bool:
        """Whether these `size` bytes are the pattern."""
        return _digest(data, self.salt) == self.digest


def usable(data: memoryview | bytes | bytearray) -> bool:
    """Whether a window is long and varied enough that a hit means something."""
    return MIN_BYTES <= len(data) <= MAX_BYTES and len(set(data)) >= MIN_DISTINCT


def key_items(name: str, key: memoryview) -> Iterator[Item]:
    """A 32-byte key under `name`, and its two halves under `<name>_half`."""
    middle = len(key) // 2
    yield name, key
    yield name + HALF, key[:middle]
    yield name + HALF, key[middle:]


def is_key(name: str) -> bool:
    """Whether a class is one of keys, whole or halved."""
    return name.removesuffix(HALF).endswith("_key")


def _digest(data: memoryview, salt: memoryview | bytes) -> bytes:
    return blake2b(data, key=salt, digest_size=_DIGEST_BYTES).digest()


def _anchor(name: str, data: memoryview) -> tuple[int, int]:
    """Where the anchor is, and its length: the first place with the most distinct bytes, zeros not counted, so that
    memory of zeros or of one repeated value holds few places to confirm.
    """
    size = KEY_ANCHOR if is_key(name) else ANCHOR
    # In the first half of a key, so that the key and that half share one search.
    places = range((MIN_BYTES if is_key(name) else len(data)) - size + 1)
    return max(places, key=lambda at: len({*data[at : at + size]} - {0})), size


def write(target: memoryview, items: Iterable[Item]) -> dict[str, int]:
    """Write fingerprints into a writable map; returns how many of each class; raises `RunError` (`pattern_*`)."""
    counts: Counter[str] = Counter()
    salt = os.urandom(SALT_BYTES)
    at = _HEAD.size
    for name, data in items:
        if not _CLASS.fullmatch(name):
            raise RunError("A pattern's class has an invalid name.", code="pattern_invalid")
        if not usable(data):
            raise RunError(f"A pattern of class {name} is too short or too uniform.", code="pattern_weak")
        label = name.encode()
        offset, size = _anchor(name, data)
        end = at + _ITEM.size + len(label) + size
        if end > len(target) or counts.total() == MAX_PATTERNS:
            raise RunError("The patterns do not fit into their memory file.", code="pattern_overflow")
        _ITEM.pack_into(target, at, len(label), len(data), offset, size, _digest(data, salt))
        at += _ITEM.size
        target[at : at + len(label)] = label
        target[end - size : end] = data[offset : offset + size]
        at = end
        counts[name] += 1
    _HEAD.pack_into(target, 0, _MAGIC, counts.total(), salt)
    return dict(sorted(counts.items()))


def read(source: memoryview) -> Iterator[Fingerprint]:
    """The fingerprints in a map; raises `RunError` (`pattern_invalid`, `pattern_weak`)."""
    broken = RunError("The patterns cannot be read.", code="pattern_invalid")
    if len(source) < _HEAD.size:
        raise broken
    magic, count, _ = _HEAD.unpack_from(source)
    if magic != _MAGIC or count > MAX_PATTERNS:
        raise broken
    at = _HEAD.size
    for _ in range(count):
        if at + _ITEM.size > len(source):
            raise broken
        label_size, size, offset, anchor_size, _ = _ITEM.unpack_from(source, at)
        at += _ITEM.size
        digest = source[at - _DIGEST_BYTES : at]
        end = at + label_size + anchor_size
        if end > len(source) or offset + anchor_size > size:
            raise broken
        name = bytes(source[at : at + label_size]).decode("ascii", "replace")
        anchor = source[end - anchor_size : end]
        if not _CLASS.fullmatch(name) or anchor_size != (KEY_ANCHOR if is_key(name) else ANCHOR):
            raise broken
        if not MIN_BYTES <= size <= MAX_BYTES or not any(anchor):
            raise RunError(f"A pattern of class {name} is too short or too uniform.", code="pattern_weak")
        yield Fingerprint(name, size, offset, anchor, digest, source[_SALT], end)
        at = end
