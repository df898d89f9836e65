"""Whether the kernel killed a process for want of memory: only the kernel knows, and only it is believed.

A signal 9 alone says nothing: a person, a container's limit of time or the kernel may have sent it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
KERNEL_LOG: Final = Path("/dev/kmsg")
_FIRST_PID_NAMESPACE: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO of the kernel
_KILLED: Final = re.compile(rb"^\d+,\d+,(\d+),[^;]*;.*Killed process (\d+)\b")
_MAX_RECORD: Final = 8192
_MAX_RECORDS: Final = 100_000


def oom_kills(membership: str | None = None, root: Path = CGROUPS) -> int | None:
    """How often the kernel has killed a process of this process's cgroup for want of memory; None if it does not say.

    `membership` is the text of `/proc/self/cgroup`. Files: `memory.events` of cgroup v2, `memory.oom_control` of v1.
    """
    for path in _counters(_own_membership() if membership is None else membership, root):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text(encoding="ascii").splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return None


def _own_membership() -> str:
    try:
        return Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _counters(membership: str, root: Path) -> list[Path]:
    """Where the counter may be: a container sees its own cgroup at the root, whatever its membership says."""
    files = []
    for line in membership.splitlines():
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        below = group.lstrip("/")
        if not controllers:
            files += [top / below / "memory.events" for top in (root, root / "unified")]
        elif "memory" in controllers.split(","):
            files += [root / "memory" / below / "memory.oom_control", root / "memory" / "memory.oom_control"]
    return [*files, root / "memory.events"]


class OomWatch:
    """The kernel's record of kills, from now on."""

    def __init__(self) -> None:
        self._before = oom_kills()
        self._since = time.clock_gettime(time.CLOCK_MONOTONIC)

    def killed(self, pid: int) -> bool:
        """True when the kernel has recorded since then that it killed a process here for want of memory."""
        now = oom_kills()
        if self._before is not None and now is not None and now > self._before:
            return True
        return logged_kill(pid, self._since)


def logged_kill(pid: int, since: float, log: Path = KERNEL_LOG, namespace: str | None = None) -> bool:
    """Whether the kernel's log, where it may be read, names this pid as killed for want of memory after `since`.

    `since` in seconds of the monotonic clock. The log has the pids of the first pid namespace, so no other is asked.
    """
    try:
        seen = os.readlink("/proc/self/ns/pid") if namespace is None else namespace  # noqa: PTH115  not a path
        if seen != _FIRST_PID_NAMESPACE:
            return False
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return any(_names(record, pid, since) for record in _records(descriptor))
    finally:
        os.close(descriptor)


def _records(descriptor: int) -> list[bytes]:
    """The log's records; one read of the device returns one, a regular file is split into lines."""
    records: list[bytes] = []
    while len(records) < _MAX_RECORDS:
        try:
            record = os.read(descriptor, _MAX_RECORD)
        except BrokenPipeError:
            continue  # older records were overwritten meanwhile; the next read goes on behind them
        except OSError:
            break  # EAGAIN: the end of the log
        if not record:
            break
        records += record.splitlines()
    return records


def _names(record: bytes, pid: int, since: float) -> bool:
    match = _KILLED.match(record)
    return match is not None and int(match[2]) == pid and int(match[1]) / 1e6 >= since
