"""Landlock by system call: access to files and TCP denied, except for the listed paths.

It binds only the calling thread and its later children, so it is applied while the process has one task. Files
that are open already stay open, which is how a trainer keeps its payload, and CUDA its devices.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from engine.worker.isolation._libc import prctl, syscall

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION_FLAG: Final = 1
_RULE_PATH_BENEATH: Final = 1
_PATH_BENEATH: Final = struct.Struct("=Qi")
_PR_SET_NO_NEW_PRIVS: Final = 38

_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_REFER: Final = 1 << 13
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15
_FILE_RIGHTS: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_MAKE_DEVICES: Final = 1 << 6 | 1 << 11  # character and block devices
_NET_BIND_AND_CONNECT: Final = 0b11
_SCOPE_ABSTRACT_UNIX_AND_SIGNAL: Final = 0b11

TCP_ABI: Final = 4
SCOPE_ABI: Final = 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


def abi() -> int:
    """The kernel's Landlock ABI version; raises `OSError` (ENOSYS, EOPNOTSUPP) where it has no Landlock."""
    return syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)


def handled_fs(version: int) -> int:
    """Every file right of ABI `version`: whatever no rule grants is denied."""
    rights = (1 << 13) - 1
    if version >= 2:
        rights |= _REFER
    if version >= 3:
        rights |= _TRUNCATE
    if version >= 5:
        rights |= _IOCTL_DEV
    return rights


def restrict(
    version: int,
    *,
    write: Sequence[Path] = (),
    read: Sequence[Path] = (),
    devices: Sequence[Path] = (),
) -> None:
    """Deny this thread every path but `write` (read and write, no exec), `read`, and `devices` (with ioctl).

    TCP bind and connect are denied from ABI 4 on, signals and abstract sockets to other processes from ABI 6 on.
    Sets `no_new_privs`. Raises `OSError` and then has applied nothing.
    """
    handled = handled_fs(version)
    ruleset = _Ruleset(
        handled,
        _NET_BIND_AND_CONNECT if version >= TCP_ABI else 0,
        _SCOPE_ABSTRACT_UNIX_AND_SIGNAL if version >= SCOPE_ABI else 0,
    )
    size = 24 if version >= SCOPE_ABI else 16 if version >= TCP_ABI else 8
    fd = syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    try:
        reading = _READ_FILE | _READ_DIR
        for paths, rights in (
            (write, handled & ~(_EXECUTE | _MAKE_DEVICES | _IOCTL_DEV)),
            (read, reading),
            (devices, reading | _WRITE_FILE | _IOCTL_DEV),
        ):
            for path in paths:
                _allow(fd, path, rights & handled)
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        syscall(_RESTRICT_SELF, fd, 0)
    finally:
        os.close(fd)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            rights &= _FILE_RIGHTS
        rule = _PATH_BENEATH.pack(rights, parent)
        syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(parent)
