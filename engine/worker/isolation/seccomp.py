"""A system-call filter in raw BPF: system calls that a process with plaintext must never make again.

Denied calls fail with EPERM, so that a library that only tries one continues. `clone` without CLONE_THREAD is
denied and `clone3` fails with ENOSYS (its flags are in memory, where a filter cannot read them), so that threads
can be started and processes cannot. ioctl is never denied: CUDA needs it.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from typing import Final, NamedTuple

from engine.worker.isolation._libc import prctl, syscall

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_DUMPABLE: Final = 4
_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1
_CLONE_THREAD: Final = 0x0001_0000
_X32_BIT: Final = 0x4000_0000

RET_KILL_PROCESS: Final = 0x8000_0000
RET_ERRNO: Final = 0x0005_0000
RET_ALLOW: Final = 0x7FFF_0000

_LOAD_WORD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER_EQUAL: Final = 0x35
_JUMP_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
_OFFSET_NUMBER: Final = 0
_OFFSET_ARCH: Final = 4
_OFFSET_FIRST_ARGUMENT: Final = 16  # its low 32 bits, little-endian

AUDIT_ARCH: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}

# name: (x86_64, aarch64); None where an architecture lacks the call.
DENIED: Final[dict[str, tuple[int | None, int | None]]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
CLONE: Final = {"x86_64": 56, "aarch64": 220}
CLONE3: Final = 435
PRCTL: Final = {"x86_64": 157, "aarch64": 167}
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}


class Instruction(NamedTuple):
    """One BPF instruction: operation, jumps when true and when false, operand."""

    code: int
    jt: int
    jf: int
    k: int


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def denied_numbers(machine: str) -> dict[str, int]:
    """The numbers of the denied calls on `machine` (`x86_64` or `aarch64`)."""
    column = 0 if machine == "x86_64" else 1
    return {name: number for name, pair in DENIED.items() if (number := pair[column]) is not None}


def program(machine: str) -> list[Instruction]:
    """The filter for `machine`; raises `OSError` (EOPNOTSUPP) for any but x86_64 and aarch64."""
    if machine not in AUDIT_ARCH:
        raise OSError(errno.EOPNOTSUPP, "no system-call table for this machine")
    refuse = RET_ERRNO | errno.EPERM
    steps = [
        Instruction(_LOAD_WORD, 0, 0, _OFFSET_ARCH),
        Instruction(_JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        Instruction(_RETURN, 0, 0, RET_KILL_PROCESS),
        Instruction(_LOAD_WORD, 0, 0, _OFFSET_NUMBER),
    ]
    if machine == "x86_64":
        steps += [
            Instruction(_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT),
            Instruction(_RETURN, 0, 0, RET_KILL_PROCESS),
        ]
    for number in sorted(denied_numbers(machine).values()):
        steps += [Instruction(_JUMP_EQUAL, 0, 1, number), Instruction(_RETURN, 0, 0, refuse)]
    return [
        *steps,
        Instruction(_JUMP_EQUAL, 0, 1, CLONE3),
        Instruction(_RETURN, 0, 0, RET_ERRNO | errno.ENOSYS),
        Instruction(_JUMP_EQUAL, 0, 3, CLONE[machine]),
        Instruction(_LOAD_WORD, 0, 0, _OFFSET_FIRST_ARGUMENT),
        Instruction(_JUMP_ANY_BIT, 4, 0, _CLONE_THREAD),
        Instruction(_RETURN, 0, 0, refuse),
        Instruction(_JUMP_EQUAL, 0, 2, PRCTL[machine]),
        Instruction(_LOAD_WORD, 0, 0, _OFFSET_FIRST_ARGUMENT),
        Instruction(_JUMP_EQUAL, 1, 0, _PR_SET_DUMPABLE),
        Instruction(_RETURN, 0, 0, RET_ALLOW),
        Instruction(_RETURN, 0, 0, refuse),
    ]


def install() -> int:
    """Filter every thread of this process, irrevocably; returns how many calls are denied; raises `OSError`."""
    machine = platform.machine()
    steps = program(machine)
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    loaded = _Program(len(steps), ctypes.addressof(buffer))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    other = syscall(_SECCOMP[machine], _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(loaded))
    if other:
        raise OSError(errno.EBUSY, "a thread could not be filtered")
    return len(denied_numbers(machine)) + 3
