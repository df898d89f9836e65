"""Hardening a worker process: every control is applied, then reported as observed.

A control that a machine lacks raises nothing: the policy judges the report. By the time of the call, the caller has
finished its imports and its rehearsal, has opened every file it needs, and has one task. CUDA: create the context
first and name `/dev/nvidia*` in `device_paths`, so that they may be opened and sent ioctl later too; files that are
open already are not restricted.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.worker.isolation import landlock, memfd, procfs, seccomp, smaps
from engine.worker.isolation._libc import errno_name, last_error, libc, prctl

CONTROLS: Final = (
    "single_task",
    "no_core",
    "no_dump",
    "no_new_privs",
    "yama",
    "mlockall",
    "dontdump",
    "network_namespace",
    "landlock_fs",
    "landlock_tcp",
    "seccomp",
)

ENFORCED: Final = "enforced"
ABSENT: Final = "absent"
NOT_ATTEMPTED: Final = "not_attempted"

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_PR_GET_SECCOMP: Final = 21
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39
_SECCOMP_MODE_FILTER: Final = 2
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
_CLONE_NEWNET: Final = 0x4000_0000
_CAP_IPC_LOCK: Final = 14
_CAP_SYS_ADMIN: Final = 21
DEVICES: Final = Path("/dev")
_YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_PROBE_ADDRESS: Final = ("127.0.0.1", 9)
_MISSING: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Observation:
    """One control: `enforced`, `absent`, `not_attempted` or `failed:<errno name, or what was observed>`."""

    value: str
    detail: str = ""

    @property
    def enforced(self) -> bool:
        """Whether the control was observed to hold."""
        return self.value == ENFORCED

    def as_dict(self) -> dict[str, str]:
        """`{"value", "detail"}`, as in the evidence."""
        return {"value": self.value, "detail": self.detail}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a role may still do once it is hardened.

    `scratch` is the only folder it may write to; `read_paths` it may read; `device_paths` it may open, read,
    write and send ioctl. `secret_maps` are left out of core dumps, as is all anonymous memory. `lock_memory`
    keeps pages from swap. `skip` names controls that are not applied, and reported so.
    """

    scratch: Path | None = None
    read_paths: tuple[Path, ...] = ()
    device_paths: tuple[Path, ...] = ()
    secret_maps: tuple[mmap.mmap, ...] = ()
    lock_memory: bool = True
    network_namespace: bool = True
    skip: frozenset[str] = frozenset()


def device_files(folder: Path = DEVICES) -> tuple[Path, ...]:
    """The NVIDIA driver's device files, for `Options.device_paths`; empty where there is no driver.

    `nvidiactl`, `nvidia0` (one per GPU), `nvidia-uvm`, `nvidia-uvm-tools`, `nvidia-modeset`, the folder `nvidia-caps`.
    """
    return tuple(sorted(folder.glob("nvidia*")))


def harden(options: Options) -> dict[str, Observation]:
    """Apply every control to this process in the order that works; reports every name of `CONTROLS`."""
    controls = _Controls(options)
    steps: dict[str, Callable[[], Observation]] = {
        "single_task": controls.single_task,
        "no_core": _no_core,
        "no_dump": _no_dump,
        "no_new_privs": _no_new_privs,
        "yama": _yama,
        "mlockall": controls.mlockall,
        "dontdump": controls.dontdump,
        "network_namespace": controls.network_namespace,
        "landlock_fs": controls.landlock_fs,
        "landlock_tcp": controls.landlock_tcp,
        "seccomp": _seccomp,
    }
    skipped = Observation(NOT_ATTEMPTED, "skipped")
    return {name: skipped if name in options.skip else _observed(step) for name, step in steps.items()}


def _observed(step: Callable[[], Observation]) -> Observation:
    try:
        return step()
    except OSError as error:
        if error.errno in _MISSING:
            return Observation(ABSENT, errno_name(error))
        return Observation(f"failed:{errno_name(error)}", os.strerror(error.errno or 0))


class _Controls:
    """The controls that depend on the options, on each other, or on files that Landlock closes."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._tasks = procfs.task_count()
        self._landlock_abi = 0

    def single_task(self) -> Observation:
        return Observation(ENFORCED if self._tasks == 1 else "failed:threads", f"tasks {self._tasks}")

    def mlockall(self) -> Observation:
        if not self._options.lock_memory:
            return Observation(NOT_ATTEMPTED, "not requested")
        unlimited = _has_capability(_CAP_IPC_LOCK) or _memlock_limit() == resource.RLIM_INFINITY
        # Under a limit, locking later maps too would make allocations fail.
        if libc.mlockall(_MCL_CURRENT | _MCL_ONFAULT | (_MCL_FUTURE if unlimited else 0)) != 0:
            raise last_error()
        locked = int(_status("VmLck").partition(" ")[0])
        if not unlimited:
            return Observation("failed:memlock_limit", f"{locked} KiB locked, later maps are not")
        return Observation(ENFORCED if locked else "failed:not_observed", f"{locked} KiB locked")

    def dontdump(self) -> Observation:
        named = {memfd.address_of(mapping): len(mapping) for mapping in self._options.secret_maps}
        lasting = {area.start: area.size for area in smaps.own() if area.anonymous_writable}
        for address, size in (named | lasting).items():
            if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_DONTDUMP) != 0:
                error = last_error()
                if (
                    address in named or error.errno != errno.ENOMEM
                ):  # ENOMEM: the heap returned it to the kernel in the meantime
                    raise error
        areas = smaps.own()
        marked = [area for area in areas if "dd" in area.flags]
        missed = [area for area in areas if area.start in lasting and "dd" not in area.flags]
        seen = all(any(area.start <= address < area.end for area in marked) for address in named)
        detail = f"{sum(area.size for area in marked) // 1024} KiB marked"
        return Observation(ENFORCED if seen and not missed else "failed:not_observed", detail)

    def network_namespace(self) -> Observation:
        if not self._options.network_namespace:
            return Observation(NOT_ATTEMPTED, "not requested")
        if not _has_capability(_CAP_SYS_ADMIN):
            return Observation(NOT_ATTEMPTED, "no CAP_SYS_ADMIN")
        here = Path("/proc/self/ns/net")
        before = here.readlink()
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise last_error()
        return Observation(ENFORCED if here.readlink() != before else "failed:not_observed")

    def landlock_fs(self) -> Observation:
        version = landlock.abi()
        landlock.restrict(
            version,
            write=() if self._options.scratch is None else (self._options.scratch,),
            read=self._options.read_paths,
            devices=tuple(path for path in self._options.device_paths if path.exists()),
        )
        self._landlock_abi = version
        try:
            os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except PermissionError:
            return self._landlocked(ENFORCED)
        return self._landlocked("failed:not_observed")

    def landlock_tcp(self) -> Observation:
        if not self._landlock_abi:
            return Observation(ABSENT if "landlock_fs" not in self._options.skip else NOT_ATTEMPTED, "no landlock")
        if self._landlock_abi < landlock.TCP_ABI:
            return Observation(ABSENT, f"abi {self._landlock_abi}")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            refused = probe.connect_ex(_PROBE_ADDRESS)
        return self._landlocked(ENFORCED if refused == errno.EACCES else "failed:not_observed")

    def _landlocked(self, value: str) -> Observation:
        detail = f"abi {self._landlock_abi}"
        if value == ENFORCED and self._tasks != 1:
            return Observation("failed:threads", f"{detail}, binds 1 of {self._tasks} tasks")
        return Observation(value, detail)


def _no_core() -> Observation:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    return Observation(ENFORCED if limits == (0, 0) else "failed:not_observed", f"limit {limits[0]}")


def _no_dump() -> Observation:
    prctl(_PR_SET_DUMPABLE, 0)
    dumpable = prctl(_PR_GET_DUMPABLE)
    return Observation(ENFORCED if dumpable == 0 else "failed:not_observed", f"dumpable {dumpable}")


def _no_new_privs() -> Observation:
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return Observation(ENFORCED if prctl(_PR_GET_NO_NEW_PRIVS) == 1 else "failed:not_observed")


def _yama() -> Observation:
    try:
        scope = int(_YAMA.read_text())
    except FileNotFoundError:
        return Observation(ABSENT)
    return Observation(ENFORCED if scope > 0 else NOT_ATTEMPTED, f"ptrace_scope {scope}")


def _seccomp() -> Observation:
    denied = seccomp.install()
    mode = prctl(_PR_GET_SECCOMP)
    try:
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()
    except PermissionError:
        if mode == _SECCOMP_MODE_FILTER:
            return Observation(ENFORCED, f"{denied} calls denied")
    return Observation("failed:not_observed", f"mode {mode}")


def _has_capability(number: int) -> bool:
    return bool(int(_status("CapEff"), 16) >> number & 1)


def _memlock_limit() -> int:
    """The soft limit in bytes, raised to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    return hard


def _status(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return "0"
