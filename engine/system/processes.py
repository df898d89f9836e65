"""Identifying processes: a pid is reused, a pid together with its start time is not."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from engine.system.clock import boot_id

PROC: Final = Path("/proc")
_ENDED: Final = frozenset({b"Z", b"X"})


class ProcessStat(NamedTuple):
    """One line of proc(5)'s `stat`; `start` is in clock ticks since boot."""

    pid: int
    state: bytes
    parent: int
    session: int
    start: int

    @property
    def has_ended(self) -> bool:
        """True for a zombie: it has no memory and no open files any more."""
        return self.state in _ENDED


def read_stat(pid: int) -> ProcessStat | None:
    """The kernel's status of `pid`, zombies included; None if there is no such process."""
    try:
        # The command name may contain spaces and parentheses; it ends at the last closing parenthesis.
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return ProcessStat(pid=pid, state=fields[0], parent=int(fields[1]), session=int(fields[3]), start=int(fields[19]))


def live_process(pid: int) -> ProcessStat | None:
    """As `read_stat`, but a zombie counts as gone."""
    stat = read_stat(pid)
    return None if stat is None or stat.has_ended else stat


def start_ticks(pid: int) -> int | None:
    """When this process started, in clock ticks since boot; None if it is gone. A zombie counts as gone."""
    process = live_process(pid)
    return None if process is None else process.start


def is_alive(pid: int, start: int, boot: str | None = None) -> bool:
    """True while the process with this pid and start time runs; with `boot`, only if that is the current boot."""
    return (boot is None or boot == boot_id()) and start_ticks(pid) == start
