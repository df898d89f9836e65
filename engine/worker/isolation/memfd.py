"""Anonymous memory files: plaintext that is never on a disk, and code that no process can change.

A payload is sealed with `F_SEAL_FUTURE_WRITE`, never `F_SEAL_WRITE`: its owner keeps one writable map, made
before the seal, and wipes through it, while every other process can only map it read-only and sees the zeros.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import Final

F_SEAL_FUTURE_WRITE: Final = 0x0010
PAYLOAD_SEALS: Final = F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
CODE_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_MFD_NOEXEC_SEAL: Final = 0x0008  # Linux 6.3


def create(name: str, size: int, *, inheritable: bool = False) -> int:
    """A memfd of exactly `size` bytes, all zero, that can be sealed and not executed; raises `OSError`.

    It is close-on-exec unless `inheritable`. Its map must have the same size: a store past the end is SIGBUS.
    """
    flags = os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC
    try:
        fd = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError:
        fd = os.memfd_create(name, flags)
    try:
        os.ftruncate(fd, size)
        os.set_inheritable(fd, inheritable)
    except OSError:
        os.close(fd)
        raise
    return fd


def size_of(fd: int) -> int:
    """Its size in bytes."""
    return os.fstat(fd).st_size


def map_writable(fd: int, size: int | None = None) -> mmap.mmap:
    """A shared writable map of the whole memfd, left out of core dumps; make it before the seal."""
    mapping = mmap.mmap(fd, size_of(fd) if size is None else size, mmap.MAP_SHARED)
    mapping.madvise(mmap.MADV_DONTDUMP)
    return mapping


def map_readonly(fd: int, size: int | None = None) -> mmap.mmap:
    """A shared read-only map of the whole memfd, left out of core dumps."""
    mapping = mmap.mmap(fd, size_of(fd) if size is None else size, mmap.MAP_SHARED, mmap.PROT_READ)
    mapping.madvise(mmap.MADV_DONTDUMP)
    return mapping


def from_bytes(name: str, data: bytes | bytearray | memoryview, *, inheritable: bool = False) -> int:
    """A memfd with the content `data`, its offset at 0."""
    view = memoryview(data).cast("B")
    fd = create(name, len(view), inheritable=inheritable)
    written = 0
    while written < len(view):
        written += os.pwrite(fd, view[written:], written)
    return fd


def seal_payload(fd: int) -> None:
    """Forbid new writable maps, writes and any change of size; existing writable maps stay writable."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, PAYLOAD_SEALS)


def seal_code(fd: int) -> None:
    """Forbid every change, irrevocably; raises `OSError` (EBUSY) while a writable map exists."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, CODE_SEALS)


def is_sealed(fd: int, seals: int = PAYLOAD_SEALS) -> bool:
    """Whether all of `seals` are set."""
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals == seals


def wipe_map(mapping: mmap.mmap) -> None:
    """Overwrite a writable map with zeros, for every process that maps the same memory."""
    size = len(mapping)
    first = ctypes.c_char.from_buffer(mapping)
    try:
        ctypes.memset(ctypes.addressof(first), 0, size)
    finally:
        del first


def wipe(fd: int) -> None:
    """Overwrite a whole memfd that is not sealed."""
    if size := size_of(fd):
        mapping = map_writable(fd, size)
        wipe_map(mapping)
        mapping.close()


def close_map(mapping: mmap.mmap) -> None:
    """Unmap; if an exception's traceback still holds views of the map, it is unmapped when that is dropped."""
    with contextlib.suppress(BufferError):
        mapping.close()


@contextlib.contextmanager
def opened(mapping: mmap.mmap) -> Iterator[memoryview]:
    """The bytes of a map, which is unmapped at the end."""
    view = memoryview(mapping)
    try:
        yield view
    finally:
        view.release()
        close_map(mapping)


class _Buffer(ctypes.Structure):
    """The head of CPython's `Py_buffer`, with room for the rest."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("length", ctypes.c_ssize_t),
        ("rest", ctypes.c_byte * 128),
    )


def address_of(mapping: mmap.mmap) -> int:
    """The address of a map, writable or not, in this process."""
    buffer = _Buffer()
    get = ctypes.pythonapi.PyObject_GetBuffer
    get.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
    get.restype = ctypes.c_int
    release = ctypes.pythonapi.PyBuffer_Release
    release.argtypes = (ctypes.POINTER(_Buffer),)
    release.restype = None
    get(mapping, ctypes.byref(buffer), 0)
    try:
        return int(buffer.buf or 0)
    finally:
        release(ctypes.byref(buffer))
