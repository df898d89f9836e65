"""Keys in memory: created in buffers that can be wiped, and wiping them.

`wipe` overwrites the bytes that it is given and no others. It cannot reach copies that a library, the interpreter or
the allocator made earlier (slices, reallocated buffers, cipher contexts), registers, or pages written to swap: drop
cipher objects first, avoid slices of keys (use `memoryview`), and scan the process to prove that no copy is left.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

KEY_BYTES: Final = 32

_BYTES_HEADER: Final = bytes.__basicsize__ - 1


def wipe(buffer: bytearray | memoryview | bytes) -> None:
    """Overwrite `buffer` with zeros in place, `bytes` included; raises `ValueError` for a read-only view.

    `bytes` of length 0 and 1 are shared by the interpreter and are not overwritten.
    """
    if isinstance(buffer, bytes):
        if len(buffer) > 1:
            ctypes.memset(id(buffer) + _BYTES_HEADER, 0, len(buffer))
        return
    if isinstance(buffer, memoryview) and (buffer.readonly or not buffer.c_contiguous):
        raise ValueError("Only a writable, contiguous buffer can be wiped.")
    size = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
    if size:
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), 0, size)


def random_key(size: int = KEY_BYTES) -> bytearray:
    """`size` random bytes by getrandom(2), which works without opening a file; the caller wipes them."""
    if not 0 < size <= 256:  # up to this size one call never returns fewer bytes
        raise ValueError("A key has 1 to 256 bytes.")
    drawn = os.getrandom(size)
    key = bytearray(drawn)
    wipe(drawn)
    return key


def random_keys(count: int) -> bytearray:
    """`count` random 32-byte keys, one after another in one buffer; the caller wipes it."""
    keys = bytearray(count * KEY_BYTES)
    for index in range(count):
        drawn = os.getrandom(KEY_BYTES)
        key_at(keys, index)[:] = drawn
        wipe(drawn)
    return keys


def key_at(keys: bytearray | memoryview, index: int) -> memoryview:
    """The `index`-th 32-byte key of a buffer of keys, as a view and not as a copy."""
    if not 0 <= index < len(keys) // KEY_BYTES:
        raise IndexError("There is no such key.")
    return memoryview(keys)[index * KEY_BYTES : (index + 1) * KEY_BYTES]
