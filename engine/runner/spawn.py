"""Starts the detached processes: a run's runner, and the home's sentinel. Cheap to import, for every command."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from engine.errors import RunError
from engine.plan import RENTED
from engine.runner.folder import LOGS
from engine.worker.isolation.binding import BIND_NOW

FOLDER: Final = "allocations"
LOCK: Final = "sentinel.lock"
LOG: Final = "sentinel.log"


def ensure_sentinel(home: Path) -> None:
    """Start this home's sentinel if it is not running.

    Call it after the allocation's ledger entry is written and before the allocation is requested: a sentinel that is
    about to exit reads the ledger once more after it released its lock, so no entry is missed.
    """
    folder = home / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    if _is_locked(folder / LOCK):
        return
    (home / LOGS).mkdir(mode=0o700, exist_ok=True)
    fd = os.open(home / LOGS / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(fd, "ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "engine.allocations.sentinel", "--home", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )


def watch_on(home: Path, provider: str) -> None:
    """Make sure that a rented allocation is watched: the sentinel may have died, or this machine was restarted."""
    if provider in RENTED:
        with contextlib.suppress(OSError):
            ensure_sentinel(home)


def _is_locked(lock: Path) -> bool:
    """True when a sentinel holds its lock; checked with a shared lock, so that concurrent checks do not collide."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def spawn_runner(home: Path, run_id: str) -> int:
    """Start the runner, detached from this terminal; returns its pid. Raises `RunError` (`runner_not_started`)."""
    logs = home / LOGS
    try:
        logs.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(logs / f"runner-{run_id}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(fd, "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "engine.runner", "--home", str(home), "--run", run_id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                # Caches written while the environment is measured would change it.
                env={**os.environ, **BIND_NOW, "PYTHONDONTWRITEBYTECODE": "1"},
            )
    except OSError as error:
        raise RunError(
            f"The process of the run cannot be started: {error.strerror}.",
            "Free some space or memory, then try again.",
            code="runner_not_started",
        ) from error
    return process.pid
