"""The C library by ctypes: raw system calls, and their errors as `OSError`."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, Final

libc: Final = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments: Any) -> int:
    """The result of system call `number`; raises `OSError` with its errno. Integers are passed as C longs."""
    widened = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = int(libc.syscall(ctypes.c_long(number), *widened))
    if result < 0:
        raise last_error()
    return result


def prctl(option: int, argument: int = 0) -> int:
    """prctl(2) with one argument; raises `OSError`."""
    result = int(libc.prctl(option, ctypes.c_ulong(argument), *[ctypes.c_ulong(0)] * 3))
    if result < 0:
        raise last_error()
    return result


def last_error() -> OSError:
    """The errno of the last call as an exception."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def errno_name(error: OSError) -> str:
    """`EPERM` and the like."""
    return errno.errorcode.get(error.errno or 0, "EUNKNOWN")
