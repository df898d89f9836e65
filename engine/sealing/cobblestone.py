"""Streaming Cobblestone-256 (C2SP chunked encryption) between files and buffers, in constant memory.

A stream is a 56-byte header (nonce and key commitment) and chunks of 16 KiB, each with a 16-byte tag. The
last chunk is always shorter than 16 KiB, so that a stream cut between chunks does not authenticate. Nothing
may use a plaintext before `decrypt_into` has returned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import BinaryIO, Final, Protocol

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from engine.errors import RefusedError
from engine.sealing.memory import wipe

HEADER_BYTES: Final = 56
CHUNK_BYTES: Final = 16 * 1024
TAG_BYTES: Final = 16
BLOCK_CHUNKS: Final = 64
BLOCK_BYTES: Final = BLOCK_CHUNKS * CHUNK_BYTES

_SEALED_BLOCK: Final = BLOCK_CHUNKS * (CHUNK_BYTES + TAG_BYTES)
_HASH_APART: Final = 8 * BLOCK_BYTES  # from this size a second thread pays for itself
_HINT: Final = "Do not use these bytes; transfer or make them again."


class Digest(Protocol):
    """The part of a hashlib object that is used here."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


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


def _read_block(source: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes, or fewer at the end of the source."""
    block = source.read(size)
    if len(block) == size or not block:
        return block
    parts = [block]
    missing = size - len(block)
    while missing and (part := source.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


class _Refusals:
    """The reason codes of one kind of stream: `payload_tampered`, `adapter_tampered` and so on."""

    def __init__(self, what: str, kind: str) -> None:
        self._what = what
        self._kind = kind

    def truncated(self) -> RefusedError:
        return RefusedError(f"{self._what} ends too early.", _HINT, code=f"{self._kind}_truncated")

    def tampered(self) -> RefusedError:
        return RefusedError(f"{self._what} was changed after it was sealed.", _HINT, code=f"{self._kind}_tampered")

    def wrong_context(self) -> RefusedError:
        return RefusedError(
            f"{self._what} was not sealed under this key for this place.",
            _HINT,
            code=f"{self._kind}_wrong_context",
        )


def decrypt_into(
    key: bytes | bytearray | memoryview,
    context: bytes,
    source: BinaryIO,
    target: memoryview,
    *,
    what: str,
    kind: str,
) -> str:
    """Decrypt the whole of `source` into `target` (of exactly the plain size); returns SHA-256 of the
    plaintext.

    Raises `RefusedError` with `<kind>_truncated`, `<kind>_tampered` or `<kind>_wrong_context` (another key,
    context or header), after zeroing `target`. `what` names the stream in the sentence.
    """
    refusals = _Refusals(what, kind)
    digest = hashlib.sha256()
    try:
        with ThreadPoolExecutor(1) if len(target) >= _HASH_APART else nullcontext() as hasher:
            _decrypt(key, context, source, target, refusals, digest, hasher)
    except BaseException:
        wipe(target)
        raise
    return digest.hexdigest()


def _decrypt(
    key: bytes | bytearray | memoryview,
    context: bytes,
    source: BinaryIO,
    target: memoryview,
    refusals: _Refusals,
    digest: Digest,
    hasher: ThreadPoolExecutor | None,
) -> None:
    hashing: Future[None] | None = None
    left = sealed_size(len(target))
    written = 0
    decryptor = Cobblestone256Decryptor(key, context)
    try:
        header = _read_block(source, HEADER_BYTES)
        left -= len(header)
        if len(header) < HEADER_BYTES:
            raise refusals.truncated()
        try:
            decryptor.update_into(header, target[:0])
        except InvalidTag:
            raise refusals.wrong_context() from None
        while left:
            block = _read_block(source, min(left, _SEALED_BLOCK))
            if not block:
                raise refusals.truncated()
            left -= len(block)
            count = decryptor.update_into(block, target[written:])
            plain = target[written : written + count]
            written += count
            if hasher is None:
                digest.update(plain)
            else:
                if hashing is not None:
                    hashing.result()
                hashing = hasher.submit(digest.update, plain)
        if hashing is not None:
            hashing.result()
        tail = decryptor.finalize()
        try:
            target[written:] = tail
            digest.update(target[written:])
        finally:
            wipe(tail)
    except InvalidTag:
        raise refusals.tampered() from None
    finally:
        del decryptor
    if source.read(1):
        raise refusals.tampered()
