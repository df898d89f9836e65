"""Locks held by live processes of this host. A lock whose process is gone is free."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from engine.errors import StoreError


def start_ticks(pid: int) -> int | None:
    """When this process started, in clock ticks since boot (proc(5), field 22); None when it is gone.

    A zombie counts as gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def boot_id() -> str:
    """The kernel's random id of this boot, empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_alive(pid: int, ticks: int, boot: str) -> bool:
    """True when the very process that took the lock still runs: same pid, same start, same boot."""
    return boot == boot_id() and start_ticks(pid) == ticks


def claim(connection: sqlite3.Connection, name: str, at: str, pid: int | None, ticks: int | None) -> int | None:
    """Take the lock for a process (default: this one) inside the caller's transaction.

    Returns None, or the pid of the live process that holds it. Raises `StoreError` (`run_locked`) when the
    claiming process itself is gone.
    """
    pid = os.getpid() if pid is None else pid
    started = start_ticks(pid) if ticks is None else ticks
    if started is None:
        raise StoreError(f"Process {pid} is gone and cannot hold a lock.", "Start it again.", code="run_locked")
    held = connection.execute("SELECT pid, start_ticks, boot FROM locks WHERE name = ?", (name,)).fetchone()
    if held is not None and (held["pid"], held["start_ticks"]) != (pid, started) and is_alive(*held):
        return int(held["pid"])
    connection.execute(
        "INSERT OR REPLACE INTO locks (name, pid, start_ticks, boot, at) VALUES (?, ?, ?, ?, ?)",
        (name, pid, started, boot_id(), at),
    )
    return None


def release(connection: sqlite3.Connection, name: str, pid: int | None) -> None:
    """Give the lock back when this process (default: the caller's) holds it."""
    connection.execute("DELETE FROM locks WHERE name = ? AND pid = ?", (name, os.getpid() if pid is None else pid))
