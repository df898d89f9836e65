"""Allocates the pages of a large buffer ahead of the thread that fills it.

The first store to each page of a fresh memory map costs more than decrypting the page does.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, Linux 5.14: writes nothing, and fails where a store would be SIGBUS
_STEP_BYTES: Final = 1024 * 1024
_WORTH_A_THREAD: Final = 8 * 1024 * 1024

_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_madvise.restype = ctypes.c_int


@contextmanager
def prefaulting(target: memoryview) -> Iterator[None]:
    """While the block runs, a thread allocates all whole pages of `target`, from first to last.

    If the kernel does not support that, nothing happens: each page is then allocated by its first store, as usual.
    """
    if len(target) < _WORTH_A_THREAD:
        yield
        return
    anchor = ctypes.c_char.from_buffer(target)
    stop = threading.Event()
    thread = threading.Thread(target=_populate, args=(ctypes.addressof(anchor), len(target), stop), name="prefaulting")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()  # the target must not be unmapped before the thread has ended
        del anchor


def _populate(address: int, size: int, stop: threading.Event) -> None:
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    for start in range(first, last, _STEP_BYTES):
        if stop.is_set() or _madvise(start, min(_STEP_BYTES, last - start), _POPULATE_WRITE) != 0:
            return
