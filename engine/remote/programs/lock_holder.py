"""Holds a static host for one run, on the standard library alone.

Runs there as `python -I -S -B -c SOURCE VERB ROOT RUN [SECONDS]` and prints one JSON line. `take` starts a detached
process that holds the lock of ROOT/.lock, or renews the one that this run has; `free` ends it. The holder ends by
itself when the run's supervisor has ended, or when nobody renewed it for SECONDS before there was one. The kernel
frees the lock of a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE = ".lock"
POLL_SECONDS = 0.5
RECORD_SECONDS = 2.0
UNSAFE = 6


def tell(**told: Any) -> int:
    """Print the answer."""
    print(json.dumps(told), flush=True)
    return 0


def start_ticks(pid: int) -> int | None:
    """When a live process started, in clock ticks since boot; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def lives(record: dict[str, Any]) -> bool:
    """Whether the process of a record still runs."""
    pid = record.get("pid")
    return isinstance(pid, int) and pid > 1 and start_ticks(pid) == record.get("start")


def read(path: Path) -> dict[str, Any]:
    """A small JSON file's value, empty where there is none."""
    try:
        found = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def at_work(root: Path, run: str) -> str | None:
    """Another run whose supervisor lives here, whoever holds the lock."""
    for record in root.glob("*/launched.json"):
        if record.parent.name != run and lives(read(record)):
            return record.parent.name
    return None


def hold(lock: int, root: Path, run: str, seconds: float, ready: int) -> None:
    """In the detached process: be on record, then hold until the run is over."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    record = {"run": run, "pid": os.getpid(), "start": start_ticks(os.getpid()), "since": since}
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(record).encode(), 0)
    os.write(ready, b"r")
    os.close(ready)
    renewed, until = os.fstat(lock).st_mtime_ns, time.monotonic() + seconds
    while True:
        time.sleep(POLL_SECONDS)
        launched = read(root / run / "launched.json")
        if launched:
            if not lives(launched):
                return
        elif os.fstat(lock).st_mtime_ns != renewed:
            renewed, until = os.fstat(lock).st_mtime_ns, time.monotonic() + seconds
        elif time.monotonic() > until:
            return


def recorded(lock: Path) -> dict[str, Any]:
    """Who holds the lock; waits a moment for a holder that has only just begun."""
    until = time.monotonic() + RECORD_SECONDS
    while True:
        found = read(lock)
        if lives(found) or time.monotonic() > until:
            return found
        time.sleep(0.02)


def is_safe(root: Path) -> bool:
    """False where another user of this host could put something else in the place of what is run here."""
    found = root.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & stat.S_IWOTH


def take(root: Path, run: str, seconds: float) -> int:
    """Hold, renew, or say who holds."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_safe(root):
        tell(error="others may write to the root")
        return UNSAFE
    lock = os.open(root / FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        found = recorded(root / FILE)
        if found.get("run") == run:
            os.utime(root / FILE)
            return tell(held=True, **found)
        return tell(held=False, run=str(found.get("run", "")), since=str(found.get("since", "")))
    other = at_work(root, run)
    if other is not None:
        return tell(held=False, run=other, since="")
    ended, ready = os.pipe()
    if os.fork() == 0:
        try:
            hold(lock, root, run, seconds, ready)
        finally:
            os._exit(0)
    os.close(ready)
    if not os.read(ended, 1):
        return tell(error="the holder did not start")
    return tell(held=True, **read(root / FILE))


def free(root: Path, run: str) -> int:
    """End this run's holder, and no other's."""
    found = read(root / FILE)
    if found.get("run") == run and lives(found):
        with contextlib.suppress(ProcessLookupError):
            os.kill(found["pid"], signal.SIGKILL)
        while lives(found):
            time.sleep(0.01)
    return tell(freed=True)


def main(verb: str, root: str, run: str, seconds: str = "0") -> int:
    """One verb."""
    os.umask(0o077)
    return take(Path(root), run, float(seconds)) if verb == "take" else free(Path(root), run)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except OSError as failure:
        tell(error=os.strerror(failure.errno or 0))
        sys.exit(5)
