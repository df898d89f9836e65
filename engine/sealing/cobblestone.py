"""Streaming Cobblestone-256 (C2SP chunked encryption) between files and buffers, in constant memory.

A stream is a 56-byte header (nonce and key commitment) and chunks of 16 KiB, each with a 16-byte tag. The last chunk is
always shorter than 16 KiB, so that a stream cut between chunks does not authenticate. No plaintext may be used before
`decrypt_into` has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from engine.errors import RefusedError
from engine.sealing.hashing import HASH_BYTES, Hasher, hashing_thread
from engine.sealing.memory import wipe
from engine.sealing.prefault import prefaulting

HEADER_BYTES: Final = 56
CHUNK_BYTES: Final = 16 * 1024
TAG_BYTES: Final = 16
BLOCK_CHUNKS: Final = 16  # a block that stays in a core's cache between two steps is moved twice as fast
BLOCK_BYTES: Final = BLOCK_CHUNKS * CHUNK_BYTES

_SEALED_BLOCK: Final = BLOCK_CHUNKS * (CHUNK_BYTES + TAG_BYTES)
_HINT: Final = "Do not use this file; transfer it or create it again."


class Source(Protocol):
    """A binary file, buffered or not."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


def sealed_size(size: int) -> int:
    """The length in bytes of the stream over `size` plain bytes."""
    return HEADER_BYTES + size + TAG_BYTES * (size // CHUNK_BYTES + 1)


def encrypt_stream(
    key: bytearray | memoryview,
    context: bytes,
    blocks: Iterable[memoryview],
    write: Callable[[memoryview | bytes], object],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the stream over `blocks`, each at most `BLOCK_BYTES`; `progress` gets the plain bytes of each."""
    out = memoryview(bytearray(HEADER_BYTES + _SEALED_BLOCK + CHUNK_BYTES + TAG_BYTES))
    encryptor = Cobblestone256Encryptor(key, context)
    try:
        for block in blocks:
            write(out[: encryptor.update_into(block, out)])
            if progress is not None:
                progress(len(block))
        write(encryptor.finalize())
    finally:
        del encryptor  # drops the library's copies of the key, also while an exception is in flight


def _fill(source: Source, buffer: memoryview) -> int:
    """Read until the buffer is full or the source ends; returns how many bytes there are."""
    filled = 0
    while filled < len(buffer) and (count := source.readinto(buffer[filled:])):
        filled += count
    return filled


class _Refusals:
    """The reason codes of one kind of stream: `payload_tampered`, `adapter_tampered` and so on."""

    def __init__(self, what: str, kind: str) -> None:
        self._what = what
        self._kind = kind

    def truncated(self) -> RefusedError:
        return RefusedError(f"{self._what} is truncated.", _HINT, code=f"{self._kind}_truncated")

    def tampered(self) -> RefusedError:
        return RefusedError(f"{self._what} was changed after it was sealed.", _HINT, code=f"{self._kind}_tampered")

    def wrong_context(self) -> RefusedError:
        return RefusedError(
            f"{self._what} was sealed with another key, or belongs somewhere else.",
            _HINT,
            code=f"{self._kind}_wrong_context",
        )


def decrypt_into(
    key: bytes | bytearray | memoryview,
    context: bytes,
    source: Source,
    target: memoryview,
    *,
    what: str,
    kind: str,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Decrypt the whole of `source` into `target` (of exactly the plain size); returns SHA-256 of the plaintext in hex.

    `progress` gets the number of plain bytes of each step; the plaintext is not authentic before this returns. Raises
    `RefusedError` with `<kind>_truncated`, `<kind>_tampered` or `<kind>_wrong_context` (another key, context or
    header), after zeroing `target`. `what` names the stream in messages.
    """
    refusals = _Refusals(what, kind)
    try:
        with hashing_thread(len(target)) as thread, prefaulting(target):
            hasher = Hasher(thread)
            _decrypt(key, context, source, target, refusals, hasher, progress)
            return hasher.hexdigest()
    except BaseException:
        wipe(target)
        raise


def _decrypt(
    key: bytes | bytearray | memoryview,
    context: bytes,
    source: Source,
    target: memoryview,
    refusals: _Refusals,
    hasher: Hasher,
    progress: Callable[[int], None] | None,
) -> None:
    block = memoryview(bytearray(_SEALED_BLOCK))
    left = sealed_size(len(target))
    written = hashed = 0
    decryptor = Cobblestone256Decryptor(key, context)
    try:
        if _fill(source, block[:HEADER_BYTES]) < HEADER_BYTES:
            raise refusals.truncated()
        try:
            decryptor.update_into(block[:HEADER_BYTES], target[:0])
        except InvalidTag:
            raise refusals.wrong_context() from None
        left -= HEADER_BYTES
        while left:
            count = _fill(source, block[: min(left, _SEALED_BLOCK)])
            if not count:
                raise refusals.truncated()
            left -= count
            opened = decryptor.update_into(block[:count], target[written:])
            written += opened
            if written - hashed >= HASH_BYTES:
                hasher.update(target[hashed:written])
                hashed = written
            if progress is not None:
                progress(opened)
        tail = decryptor.finalize()
        try:
            target[written:] = tail
        finally:
            wipe(tail)
    except InvalidTag:
        raise refusals.tampered() from None
    finally:
        del decryptor
    if source.readinto(block[:1]):
        raise refusals.tampered()
    hasher.update(target[hashed:])
