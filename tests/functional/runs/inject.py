"""Makes a process that is blocked in a system call execute another one, by ptrace, to test from outside what it may do.

Needs CAP_SYS_PTRACE and x86-64. The process then continues unaffected, because its registers are restored.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_POKE, _CONT_STEP, _GETREGS, _SETREGS, _ATTACH, _DETACH = 5, 9, 12, 13, 16, 17
_WALL = 0x4000_0000
_SYSCALL = b"\x0f\x05"
_RED_ZONE = 4096

_NAMES = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

NUMBERS = {
    "write": 1, "close": 3, "mmap": 9, "socket": 41, "fork": 57, "execve": 59, "kill": 62, "ptrace": 101,
    "prctl": 157, "unlink": 87, "openat": 257, "unshare": 272, "process_vm_readv": 310, "memfd_create": 319,
    "getppid": 110,
}  # fmt: skip


class _Registers(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_ulonglong) for name in _NAMES)


def possible() -> bool:
    """Whether this machine and user can inject system calls."""
    status = next(line for line in open("/proc/self/status") if line.startswith("CapEff"))  # noqa: PTH123, SIM115
    return platform.machine() == "x86_64" and bool(int(status.split()[1], 16) >> 19 & 1)


class Stopped:
    """A process held in a system call."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._kept = _Registers()
        self._ptrace(_GETREGS, 0, ctypes.addressof(self._kept))

    def call(self, name: str, *arguments: int | bytes) -> int:
        """Make a system call in the process; returns the result, negative for an errno. Bytes are put on its stack."""
        registers = _Registers.from_buffer_copy(self._kept)
        place = self._kept.rsp - _RED_ZONE
        values = []
        for argument in arguments:
            if isinstance(argument, bytes):
                self._write(place, argument + b"\0")
                values.append(place)
                place -= _RED_ZONE
            else:
                values.append(argument)
        names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
        for register, value in zip(names, values, strict=False):
            setattr(registers, register, value & (1 << 64) - 1)
        registers.rax = NUMBERS[name]
        registers.orig_rax = (1 << 64) - 1  # otherwise the kernel would restart the interrupted call
        registers.rip = self._kept.rip - len(_SYSCALL)
        self._ptrace(_SETREGS, 0, ctypes.addressof(registers))
        self._ptrace(_CONT_STEP, 0, 0)
        os.waitpid(self._pid, _WALL)
        self._ptrace(_GETREGS, 0, ctypes.addressof(registers))
        (result,) = struct.unpack("q", struct.pack("Q", registers.rax))
        return int(result)

    def restore(self) -> None:
        """Restore the registers."""
        self._ptrace(_SETREGS, 0, ctypes.addressof(self._kept))

    def _write(self, at: int, data: bytes) -> None:
        for offset in range(0, len(data), 8):
            (word,) = struct.unpack("Q", data[offset : offset + 8].ljust(8, b"\0"))
            self._ptrace(_POKE, at + offset, word)

    def _ptrace(self, request: int, address: int, data: int) -> None:
        if libc.ptrace(request, self._pid, address, data) != 0:
            raise OSError(ctypes.get_errno(), f"ptrace {request}")


@contextmanager
def stopped(pid: int) -> Iterator[Stopped]:
    """Suspend a process that waits in a system call; it continues afterwards."""
    if libc.ptrace(_ATTACH, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace attach")
    os.waitpid(pid, _WALL)
    process = Stopped(pid)
    try:
        yield process
    finally:
        process.restore()
        libc.ptrace(_DETACH, pid, 0, 0)
