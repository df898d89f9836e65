"""Locks held by running processes of this host. A lock whose process has ended is free."""

from __future__ import annotations

import os
import sqlite3

from engine.errors import StoreError
from engine.system.clock import boot_id
from engine.system.processes import is_alive, start_ticks


def claim(connection: sqlite3.Connection, name: str, at: str, pid: int | None, ticks: int | None) -> int | None:
    """Take the lock for a process (default: this one) inside the caller's transaction.

    Returns None, or the pid of the running process that holds it. Raises `StoreError` (`run_locked`) when the
    claiming process itself has ended.
    """
    pid = os.getpid() if pid is None else pid
    started = start_ticks(pid) if ticks is None else ticks
    if started is None:
        raise StoreError(f"Process {pid} has ended and cannot run this.", "Start it again.", code="run_locked")
    held = connection.execute("SELECT pid, start_ticks, boot FROM locks WHERE name = ?", (name,)).fetchone()
    if held is not None and (held["pid"], held["start_ticks"]) != (pid, started) and is_alive(*held):
        return int(held["pid"])
    connection.execute(
        "INSERT OR REPLACE INTO locks (name, pid, start_ticks, boot, at) VALUES (?, ?, ?, ?, ?)",
        (name, pid, started, boot_id(), at),
    )
    return None


def release(connection: sqlite3.Connection, name: str, pid: int | None) -> None:
    """Release the lock if this process (default: the caller's) holds it."""
    connection.execute("DELETE FROM locks WHERE name = ? AND pid = ?", (name, os.getpid() if pid is None else pid))
