"""The processes of a local allocation: identified by mark and session, and signalled through a pidfd.

A pidfd together with the start time makes sure that a reused pid is never signalled. A static host runs this text on
its own, so it imports nothing of ours: what it repeats of `engine.system.processes` is on purpose.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

PROC: Final = Path("/proc")
MARK: Final = "GLASSHOUSE_ALLOCATION"
POLL_SECONDS: Final = 0.02
_BUNDLE: Final = b"/proc/self/fd/"
_ENDED: Final = frozenset({b"Z", b"X"})


class Process(NamedTuple):
    """One live process; `start` in clock ticks since boot makes the pid unique."""

    pid: int
    parent: int
    session: int
    start: int


def live_process(pid: int) -> Process | None:
    """The live process `pid`; None when there is none, and for a zombie."""
    try:
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in _ENDED:
        return None
    return Process(pid=pid, parent=int(fields[1]), session=int(fields[3]), start=int(fields[19]))


def is_alive(pid: int, start: int) -> bool:
    """True while the process with this pid and start time runs."""
    process = live_process(pid)
    return process is not None and process.start == start


def of_folder(folder: Path, launched: Collection[tuple[int, int]] = ()) -> list[Process]:
    """Every process of the allocation in `folder`, with its descendants; never the caller or its ancestors.

    A process belongs to the allocation when the variable `MARK` in its environment names the folder; or when it runs a
    bundle, and a path on its command line is inside the folder or its session is that of a supervisor in `launched`
    (pid and start).
    """
    table = {process.pid: process for process in _all()}
    sessions = {pid for pid, start in launched if pid not in table or table[pid].start == start}
    excluded = _with_ancestors(table, os.getpid())
    chosen = {pid for pid, stat in table.items() if pid not in excluded and _belongs(stat, folder, sessions)}
    has_grown = True
    while has_grown:
        children = {pid for pid, stat in table.items() if stat.parent in chosen and pid not in excluded}
        has_grown = not children <= chosen
        chosen |= children
    return [table[pid] for pid in sorted(chosen)]


def terminate(processes: Iterable[Process], grace: float, patience: float = 5.0) -> list[Process]:
    """SIGTERM, then SIGKILL after `grace` seconds; returns those that are still alive `patience` seconds later."""
    left = [process for process in processes if _signal(process, signal.SIGTERM)]
    left = _wait(left, grace)
    for process in left:
        _signal(process, signal.SIGKILL)
    return _wait(left, patience)


def _all() -> Iterator[Process]:
    for entry in PROC.iterdir():
        process = live_process(int(entry.name)) if entry.name.isdecimal() else None
        if process is not None:
            yield process


def _with_ancestors(table: dict[int, Process], pid: int) -> set[int]:
    """`pid` and its ancestors."""
    pids: set[int] = set()
    while pid in table and pid not in pids:
        pids.add(pid)
        pid = table[pid].parent
    return pids


def _belongs(process: Process, folder: Path, sessions: set[int]) -> bool:
    path = os.fsencode(folder)
    if MARK.encode() + b"=" + path in _words(process, "environ"):
        return True
    command = _words(process, "cmdline")
    if not any(word.startswith(_BUNDLE) for word in command):
        return False
    return process.session in sessions or any(word.startswith(path + b"/") for word in command)


def _words(process: Process, name: str) -> list[bytes]:
    try:
        return (PROC / str(process.pid) / name).read_bytes().split(b"\0")
    except OSError:  # it has ended, belongs to another user, or is not readable
        return []


def _signal(process: Process, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; False when it has ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process.pid, process.start):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _wait(processes: list[Process], seconds: float) -> list[Process]:
    until = time.monotonic() + seconds
    left = processes
    while (left := [process for process in left if is_alive(process.pid, process.start)]) and (
        time.monotonic() < until
    ):
        time.sleep(POLL_SECONDS)
    return left
