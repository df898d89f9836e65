"""SHA-256 over buffers in order, concurrently with the thread that fills them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

HASH_BYTES: Final = 512 * 1024  # per hand-over: small enough to keep up, large enough for its cost not to matter
WAITING: Final = 3  # buffers that may be queued, so that a short delay in one thread does not stall the other
_WORTH_A_THREAD: Final = 16 * HASH_BYTES


@contextmanager
def hashing_thread(size: int) -> Iterator[ThreadPoolExecutor | None]:
    """One thread to hash `size` bytes on, or None if starting it would cost more than it saves."""
    if size < _WORTH_A_THREAD:
        yield None
        return
    pool = ThreadPoolExecutor(1, "hashing")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class Hasher:
    """One digest. After `update` returns, all buffers but the last `WAITING` may be reused."""

    def __init__(self, thread: ThreadPoolExecutor | None) -> None:
        self._digest = hashlib.sha256()
        self._thread = thread
        self._waiting: deque[Future[None]] = deque()

    def update(self, data: memoryview) -> None:
        """Queue `data` to be hashed next; it must not change until it is hashed."""
        if self._thread is None:
            self._digest.update(data)
            return
        self._waiting.append(self._thread.submit(self._digest.update, data))
        self._wait(WAITING)

    def hexdigest(self) -> str:
        """The digest of everything that was passed to `update`, in hex."""
        self.drain()
        return self._digest.hexdigest()

    def drain(self) -> None:
        """Wait until everything that was passed to `update` is hashed."""
        self._wait(0)

    def _wait(self, left: int) -> None:
        while len(self._waiting) > left:
            self._waiting.popleft().result()
