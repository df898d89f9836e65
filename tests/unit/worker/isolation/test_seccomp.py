from __future__ import annotations

import errno
import struct

import pytest

from engine.worker.isolation import seccomp
from engine.worker.isolation.seccomp import RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS

DENIED = RET_ERRNO | errno.EPERM
MISSING = RET_ERRNO | errno.ENOSYS
THREAD = 0x003D0F00  # the flags with which the C library starts a thread
FORK = 0x01200011
MACHINES = ("x86_64", "aarch64")
GETPID = {"x86_64": 39, "aarch64": 172}
READ = {"x86_64": 0, "aarch64": 63}
IOCTL = {"x86_64": 16, "aarch64": 29}


def verdict(machine: str, number: int, argument: int = 0, arch: int | None = None) -> int:
    """The kernel's answer: the filter run over seccomp_data by a BPF interpreter."""
    arch = seccomp.AUDIT_ARCH[machine] if arch is None else arch
    data = struct.pack("<IIQ6Q", number, arch, 0, argument, 0, 0, 0, 0, 0)
    steps = seccomp.program(machine)
    accumulator = at = 0
    while True:
        code, jump_true, jump_false, operand = steps[at]
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            accumulator = int.from_bytes(data[operand : operand + 4], "little")
            continue
        holds = {
            0x15: accumulator == operand,
            0x35: accumulator >= operand,
            0x45: bool(accumulator & operand),
        }[code]
        at += jump_true if holds else jump_false


@pytest.mark.parametrize("machine", MACHINES)
def test_every_listed_call_is_denied(machine: str) -> None:
    numbers = seccomp.denied_numbers(machine)
    assert {"ptrace", "socket", "execve", "memfd_create", "process_vm_readv", "io_uring_setup"} <= set(numbers)
    assert {name: verdict(machine, number) for name, number in numbers.items()} == dict.fromkeys(numbers, DENIED)


@pytest.mark.parametrize("machine", MACHINES)
def test_ordinary_calls_are_allowed(machine: str) -> None:
    for number in (GETPID[machine], READ[machine], IOCTL[machine]):
        assert verdict(machine, number) == RET_ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_may_start_and_processes_may_not(machine: str) -> None:
    assert verdict(machine, seccomp.CLONE[machine], THREAD) == RET_ALLOW
    assert verdict(machine, seccomp.CLONE[machine], FORK) == DENIED
    assert verdict(machine, seccomp.CLONE3) == MISSING


@pytest.mark.parametrize("machine", MACHINES)
def test_a_process_cannot_make_itself_dumpable_again(machine: str) -> None:
    set_dumpable, get_dumpable = 4, 3
    assert verdict(machine, seccomp.PRCTL[machine], set_dumpable) == DENIED
    assert verdict(machine, seccomp.PRCTL[machine], get_dumpable) == RET_ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_architecture_kill_the_process(machine: str) -> None:
    i386 = 0x40000003
    for arch in (i386, *(seccomp.AUDIT_ARCH[other] for other in MACHINES if other != machine)):
        assert verdict(machine, GETPID[machine], arch=arch) == RET_KILL_PROCESS


def test_x32_calls_kill_the_process() -> None:
    x32 = 0x4000_0000
    assert verdict("x86_64", x32 | GETPID["x86_64"]) == RET_KILL_PROCESS


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(OSError) as caught:
        seccomp.program("riscv64")
    assert caught.value.errno == errno.EOPNOTSUPP
