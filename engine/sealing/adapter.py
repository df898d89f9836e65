"""Sealed adapters: one self-describing file that only the operator's recipient key opens.

Line 1 is a canonical JSON header. Its `wrapped_key` is the content key, encrypted by HPKE. The header without
`wrapped_key`, in canonical JSON, is both the HPKE `info` and the Cobblestone context, so that no field of it can be
changed. The Cobblestone-256 stream follows to the end of the file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.errors import RefusedError, WireError
from engine.sealing.cobblestone import BLOCK_BYTES, decrypt_into, encrypt_stream, sealed_size
from engine.sealing.manifest import is_digest, is_run_id
from engine.sealing.memory import KEY_BYTES, wipe
from engine.sealing.release import HPKE_OVERHEAD, SUITE, hpke_public
from engine.sealing.sealed_file import open_regular
from engine.wire import canonical, parse

ADAPTER_VERSION: Final = 1
ADAPTER_FORMAT: Final = "glasshouse/sealed-adapter"
MAX_HEADER_BYTES: Final = 4096
MAX_ADAPTER_BYTES: Final = 16 * 1024**3

_HINT: Final = "Collect the adapter again; if that fails, run the segment again."


class AdapterBinding(msgspec.Struct, frozen=True):
    """What an adapter belongs to. `segment` is `raw` or `protected`; digests are SHA-256 in hex."""

    run_id: str
    segment: str
    manifest_sha256: str
    nonce_sha256: str


class AdapterHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line of a sealed adapter. `size` counts the plain bytes; `wrapped_key` is base64."""

    format: str
    version: int
    run_id: str
    segment: str
    manifest_sha256: str
    nonce_sha256: str
    size: int
    wrapped_key: str

    @property
    def binding(self) -> AdapterBinding:
        """What the adapter belongs to by its header; proven only once the file has been opened."""
        return AdapterBinding(self.run_id, self.segment, self.manifest_sha256, self.nonce_sha256)


def _context(binding: AdapterBinding, size: int) -> bytes:
    return canonical(
        {"format": ADAPTER_FORMAT, "version": ADAPTER_VERSION, "size": size, **msgspec.to_builtins(binding)}
    )


def _blocks(plain: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(plain), BLOCK_BYTES):
        yield plain[start : start + BLOCK_BYTES]


def _refuse(code: str, message: str, hint: str = _HINT) -> RefusedError:
    return RefusedError(message, hint, code=code)


def _is_valid(binding: AdapterBinding, size: int) -> bool:
    return (
        is_run_id(binding.run_id)
        and binding.segment in ("raw", "protected")
        and is_digest(binding.manifest_sha256)
        and is_digest(binding.nonce_sha256)
        and 0 < size <= MAX_ADAPTER_BYTES
    )


def seal_adapter(
    plain: memoryview, recipient_public: bytes, binding: AdapterBinding, key: bytearray, out: BinaryIO
) -> str:
    """Write the sealed adapter to `out`; returns SHA-256 of the file in hex.

    `plain` is a contiguous buffer of bytes; `key` is a fresh key, which the caller wipes afterwards. Raises
    `RefusedError` (`adapter_binding_invalid`, `recipient_invalid`).
    """
    plain = plain.cast("B")
    if not _is_valid(binding, len(plain)):
        raise _refuse(
            "adapter_binding_invalid",
            "The adapter is empty or too large, or its run id, segment or digests are invalid, so it was not sealed.",
        )
    context = _context(binding, len(plain))
    public = hpke_public(recipient_public, code="recipient_invalid", what="The operator's recipient key")
    try:
        wrapped = SUITE.encrypt(key, public, info=context)
    except ValueError as error:
        raise _refuse("recipient_invalid", "The operator's recipient key cannot be used for encryption.") from error
    header = AdapterHeader(
        format=ADAPTER_FORMAT,
        version=ADAPTER_VERSION,
        size=len(plain),
        wrapped_key=base64.b64encode(wrapped).decode(),
        **msgspec.to_builtins(binding),
    )
    digest = hashlib.sha256()

    def write(data: memoryview | bytes) -> None:
        digest.update(data)
        out.write(data)

    write(canonical(msgspec.to_builtins(header)) + b"\n")
    encrypt_stream(key, context, _blocks(plain), write)
    return digest.hexdigest()


def _read_header(source: io.BufferedReader) -> AdapterHeader:
    line = source.readline(MAX_HEADER_BYTES)
    try:
        raw = parse(line)
        is_canonical = canonical(raw) + b"\n" == line
        header = msgspec.convert(raw, AdapterHeader, strict=True)
    except (WireError, msgspec.ValidationError) as error:
        raise _refuse("adapter_malformed", "This is not a sealed adapter.") from error
    if not is_canonical:
        raise _refuse("adapter_malformed", "The header of this sealed adapter is not in its canonical form.")
    if header.format != ADAPTER_FORMAT or header.version != ADAPTER_VERSION:
        raise _refuse(
            "adapter_malformed", "This version of glasshouse does not know this adapter format.", "Update glasshouse."
        )
    if not _is_valid(header.binding, header.size):
        raise _refuse("adapter_malformed", "The header of this sealed adapter is malformed.")
    return header


def read_adapter_header(path: Path) -> AdapterHeader:
    """The header of a sealed adapter, not authenticated yet; raises `RefusedError` (`adapter_malformed`)."""
    with open_regular(path, "adapter") as source:
        return _read_header(source)


def _unwrap(header: AdapterHeader, context: bytes, recipient_private: X25519PrivateKey) -> bytes:
    try:
        wrapped = base64.b64decode(header.wrapped_key, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refuse("adapter_malformed", "The header of this sealed adapter is malformed.") from error
    if len(wrapped) != KEY_BYTES + HPKE_OVERHEAD or base64.b64encode(wrapped).decode() != header.wrapped_key:
        raise _refuse("adapter_malformed", "The header of this sealed adapter is malformed.")
    try:
        return SUITE.decrypt(wrapped, recipient_private, info=context)
    except InvalidTag:
        raise _refuse(
            "adapter_wrong_key",
            "This adapter was sealed to another recipient key, or its header was changed.",
            "Restore the operator keys that were in use when the run was started.",
        ) from None


def open_adapter(path: Path, recipient_private: X25519PrivateKey, expect: AdapterBinding | None) -> bytearray:
    """The plain bytes of a sealed adapter, whole and authentic, in a buffer that the caller wipes.

    Raises `RefusedError`: `adapter_malformed`, `adapter_wrong_binding` (not `expect`), `adapter_wrong_key`,
    `adapter_truncated`, `adapter_tampered`, `adapter_wrong_context`; `SealingError` (`payload_missing`).
    """
    with open_regular(path, "adapter") as source:
        header = _read_header(source)
        if expect is not None and header.binding != expect:
            raise _refuse("adapter_wrong_binding", "This adapter belongs to another run, segment or package.")
        stream_bytes = os.fstat(source.fileno()).st_size - source.tell()
        if stream_bytes < sealed_size(header.size):  # before a buffer of the claimed size is allocated
            raise _refuse("adapter_truncated", "The sealed adapter is shorter than its header states.")
        context = _context(header.binding, header.size)
        key = _unwrap(header, context, recipient_private)
        plain = bytearray(header.size)
        try:  # when this fails the buffer was wiped already
            decrypt_into(key, context, source, memoryview(plain), what="The sealed adapter", kind="adapter")
        finally:
            wipe(key)
        return plain
