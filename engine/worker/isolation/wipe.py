"""Overwriting memory that a process has freed: heap chunks of the C library, blocks of the interpreter, maths
buffers, the stack below the caller.

Freed memory keeps its bytes until it is used again. A sweep takes every free chunk, zeroes it and frees it
again. It reaches the main arena and the main stack: run it in the main thread of a process whose other threads
handled no secrets.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from pathlib import Path
from typing import Any, Final

from engine.worker.isolation._libc import libc

PYTHON_BYTES_PER_CLASS: Final = 128 * 1024

_M_PERTURB: Final = -6
_PERTURB_BYTE: Final = 0x5A
_TCACHE_REQUESTS: Final = range(24, 1033, 16)
_LARGEST_CHUNK: Final = 1 << 26
_SMALLEST_CHUNK: Final = 32
_RTLD_NOLOAD: Final = 4
_HEADER_BYTES: Final = ctypes.sizeof(ctypes.c_size_t)
_IS_MMAPPED: Final = 2
_PYTHON_CLASSES: Final = range(48, 513, 16)
_BYTES_OVERHEAD: Final = bytes.__basicsize__
_PYTHON_POOL: Final = 16 * 1024  # obmalloc's, since Python 3.10

_malloc: Final = libc.malloc
_malloc.restype = ctypes.c_void_p
_malloc.argtypes = (ctypes.c_size_t,)
_free: Final = libc.free
_free.restype = None
_free.argtypes = (ctypes.c_void_p,)
_sbrk: Final = libc.sbrk
_sbrk.restype = ctypes.c_void_p
_sbrk.argtypes = (ctypes.c_ssize_t,)
_usable: Final = libc.malloc_usable_size
_usable.restype = ctypes.c_size_t
_usable.argtypes = (ctypes.c_void_p,)

_PAGE: Final = os.sysconf("SC_PAGESIZE")
# Offset of the stack pointer in a ucontext_t (getcontext(3)).
_STACK_POINTER: Final = {"x86_64": 160, "aarch64": 432}.get(platform.machine())
_CONTEXT: Final = ctypes.create_string_buffer(8192)  # 968 bytes on x86-64, 4560 on aarch64
# With the same signature, called from the same depth, both have the same stack pointer: memset must not overwrite its
# own live frame.
_memset: Final = libc.memset
_getcontext: Final = getattr(libc, "getcontext", None)
for _function in filter(None, (_memset, _getcontext)):
    _function.restype = None
    _function.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
# A call's return address is below the stack pointer that `getcontext` reports.
_RETURN_MARGIN: Final = 64
_mincore: Final = libc.mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
# One size per way in which the C library copies: by 16 to 64 bytes, in loops, by string instructions.
_COPY_SIZES: Final = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 65536)
_ZEROS: Final = ctypes.create_string_buffer(_COPY_SIZES[-1])
_SINK: Final = ctypes.create_string_buffer(_COPY_SIZES[-1])


class _Held:
    """Chunks taken from the heap, zeroed, and linked through their own first word: nothing else is
    allocated.
    """

    def __init__(self) -> None:
        self.head = 0
        self.bytes = 0

    def take(self, request: int, limit: int) -> bool:
        """Take and zero one free chunk; False when there is none below `limit` and the heap had to grow."""
        chunk = int(_malloc(request) or 0)
        if not chunk:
            return False
        size = int(_usable(chunk))
        mapped = ctypes.c_size_t.from_address(chunk - _HEADER_BYTES).value & _IS_MMAPPED
        if mapped or chunk + size > limit:
            _free(chunk)
            return False
        ctypes.memset(chunk, 0, size)
        ctypes.c_size_t.from_address(chunk).value = self.head
        self.head = chunk
        self.bytes += size
        return True

    def release(self) -> None:
        """Free every chunk."""
        while self.head:
            following = ctypes.c_size_t.from_address(self.head).value
            ctypes.c_size_t.from_address(self.head).value = 0
            _free(self.head)
            self.head = following


def sweep_heap() -> int:
    """Zero every free chunk of the main arena; returns the bytes zeroed.

    Chunks are taken from large to small, so that each free stretch is filled by halves, up to the former end of
    the heap; the per-thread cache comes last, class by class, when nothing is left to refill it from.
    """
    held = _Held()
    limit = int(_sbrk(0) or 0)
    chunk = _LARGEST_CHUNK
    while chunk >= _SMALLEST_CHUNK:
        while held.take(chunk - _HEADER_BYTES, limit):
            pass
        chunk //= 2
    for request in _TCACHE_REQUESTS:
        while held.take(request, limit):
            pass
    held.release()
    return held.bytes


def sweep_python(bytes_per_class: int = PYTHON_BYTES_PER_CLASS) -> int:
    """Zero free blocks of the interpreter's own allocator; returns the bytes zeroed.

    Every size class allocates `bytes_per_class`, and all blocks are held until the last class is done, because a free
    pool can serve any class. A class that stops in the middle of a pool leaves old bytes in its unused rest; so each
    class then allocates one more pool's worth, when no old pool is free any longer.
    """
    blocks: list[bytes] = []
    for share in (bytes_per_class, _PYTHON_POOL):
        for size in _PYTHON_CLASSES:
            blocks += [bytes(size - _BYTES_OVERHEAD) for _ in range(-(-share // size))]
    return sum(len(block) + _BYTES_OVERHEAD for block in blocks)


def sweep_stack() -> int:
    """Zero the main thread's stack below the caller, then the vector registers that copies go through; returns the
    bytes of stack zeroed, 0 where the C library does not report the stack pointer.

    Not covered: live frames, and bytes of older frames in them that they have not overwritten, so call it from no
    deeper than where secrets were handled (a Python function called by another adds no depth); registers that only a
    maths kernel uses, which reach memory only in a signal's frame if the process was bound at its start; stacks of
    other threads, for which it raises `RuntimeError`. Opens no file, so that it works behind Landlock.
    """
    if threading.get_native_id() != os.getpid():
        raise RuntimeError("only the main thread's stack can be swept")
    top = _stack_pointer()
    low = top - top % _PAGE
    while top and _is_mapped(low - _PAGE):
        low -= _PAGE
    swept = max(0, top - _RETURN_MARGIN - low)
    _memset(low, 0, swept)
    for size in _COPY_SIZES:
        ctypes.memmove(_SINK, _ZEROS, size)
    return swept


def _stack_pointer() -> int:
    """The stack pointer in a call of the C library from here, or from the caller; 0 if unknown."""
    if _getcontext is None or _STACK_POINTER is None:
        return 0
    _getcontext(_CONTEXT, 0, 0)
    return ctypes.c_size_t.from_buffer(_CONTEXT, _STACK_POINTER).value


def _is_mapped(page: int) -> bool:
    return int(_mincore(page, _PAGE, ctypes.byref(ctypes.c_ubyte()))) == 0


def trim() -> bool:
    """Give free pages back to the kernel; True if there were any, False also if the C library cannot."""
    malloc_trim = getattr(libc, "malloc_trim", None)
    return malloc_trim is not None and bool(malloc_trim(0))


def perturb_frees() -> bool:
    """Have the C library overwrite memory as it is freed; False where it cannot.

    Only with `GLIBC_TUNABLES=glibc.malloc.tcache_count=0` in the process's environment is this
    applied to every free: otherwise small chunks go to the per-thread cache unchanged.
    """
    mallopt = getattr(libc, "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_PERTURB, _PERTURB_BYTE))


def free_math_buffers() -> str:
    """Free the packed panels that the maths library keeps: `freed`, or `absent` if torch includes no such
    library.

    Imports nothing and opens no file, so that it works behind Landlock.
    """
    for library in _math_libraries():
        release = getattr(library, "mkl_serv_free_buffers", None)
        if release is not None:
            release.restype = None
            release()
            return "freed"
    return "absent"


def _math_libraries() -> list[Any]:
    torch = sys.modules.get("torch")
    libraries: list[Any] = [libc]
    if torch is not None and torch.__file__:
        path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        try:
            libraries.append(ctypes.CDLL(str(path), mode=_RTLD_NOLOAD))
        except OSError:
            return libraries
    return libraries
