"""Holds the lock on a static host for one run, with the standard library alone.

Runs there as `python -I -S -B -c SOURCE VERB ROOT RUN [SECONDS]` and prints one JSON line. `take` starts a detached
process that holds a lock on ROOT/.lock, or renews the one that this run holds; `free` kills it; `try` tries it out in a
folder that it removes again. The holder exits by
itself when the run's supervisor has ended, or when it was not renewed for SECONDS before there was one. The kernel
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


def reply(**fields: Any) -> int:
    """Print the answer."""
    print(json.dumps(fields), flush=True)
    return 0


def start_ticks(pid: int) -> int | None:
    """When a live process started, in clock ticks since boot; None if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def is_alive(record: dict[str, Any]) -> bool:
    """Whether the process of a record is still running."""
    pid = record.get("pid")
    return isinstance(pid, int) and pid > 1 and start_ticks(pid) == record.get("start")


def read(path: Path) -> dict[str, Any]:
    """A small JSON file's object; empty if it is missing or invalid."""
    try:
        value = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def other_active_run(root: Path, run: str) -> str | None:
    """Another run whose supervisor is alive here, even if its lock was lost."""
    for record in root.glob("*/launched.json"):
        if record.parent.name != run and is_alive(read(record)):
            return record.parent.name
    return None


def hold(lock: int, root: Path, run: str, seconds: float, ready: int) -> None:
    """In the detached process: write the record, then hold the lock until the run is over."""
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
            if not is_alive(launched):
                return
        elif os.fstat(lock).st_mtime_ns != renewed:
            renewed, until = os.fstat(lock).st_mtime_ns, time.monotonic() + seconds
        elif time.monotonic() > until:
            return


def recorded(lock: Path) -> dict[str, Any]:
    """The record of the lock's holder; waits briefly for a holder that has only just started."""
    until = time.monotonic() + RECORD_SECONDS
    while True:
        record = read(lock)
        if is_alive(record) or time.monotonic() > until:
            return record
        time.sleep(0.02)


def is_safe(root: Path) -> bool:
    """False if another user of this host could replace the files that are run here."""
    status = root.stat()
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & stat.S_IWOTH


def take(root: Path, run: str, seconds: float) -> int:
    """Take or renew the lock, or report who holds it."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_safe(root):
        reply(error="others may write to the root")
        return UNSAFE
    lock = os.open(root / FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        record = recorded(root / FILE)
        if record.get("run") == run:
            os.utime(root / FILE)
            return reply(held=True, **record)
        return reply(held=False, run=str(record.get("run", "")), since=str(record.get("since", "")))
    other = other_active_run(root, run)
    if other is not None:
        return reply(held=False, run=other, since="")
    ended, ready = os.pipe()
    if os.fork() == 0:
        try:
            hold(lock, root, run, seconds, ready)
        finally:
            os._exit(0)
    os.close(ready)
    if not os.read(ended, 1):
        return reply(error="the holder did not start")
    return reply(held=True, **read(root / FILE))


def free(root: Path, run: str) -> int:
    """Kill this run's holder, never another run's."""
    record = read(root / FILE)
    if record.get("run") == run and is_alive(record):
        with contextlib.suppress(ProcessLookupError):
            os.kill(record["pid"], signal.SIGKILL)
        while is_alive(record):
            time.sleep(0.01)
    return reply(freed=True)


def attempt(root: Path) -> int:
    """Write and lock a file where the root is or would be, and remove it again; report the disk and a live holder."""
    import shutil  # noqa: PLC0415  # the process that holds a lock during a timed run stays small
    import tempfile  # noqa: PLC0415

    at = next(folder for folder in (root, *root.parents) if folder.is_dir())
    if at == root and not is_safe(root):
        reply(error="others may write to the root")
        return UNSAFE
    folder = Path(tempfile.mkdtemp(prefix=".glasshouse-", dir=at))
    try:
        lock = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, bytes(65536))
        os.fsync(lock)
        os.close(lock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    disk, record = os.statvfs(at), read(root / FILE)
    holder = record if is_alive(record) else {}
    return reply(
        tried=True,
        at=str(at),
        free=disk.f_bavail * disk.f_frsize,
        noexec=bool(disk.f_flag & os.ST_NOEXEC),
        run=str(holder.get("run", "")),
        since=str(holder.get("since", "")),
    )


def main(verb: str, root: str, run: str, seconds: str = "0") -> int:
    """Run one verb."""
    os.umask(0o077)
    if verb == "try":
        return attempt(Path(root))
    return take(Path(root), run, float(seconds)) if verb == "take" else free(Path(root), run)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except OSError as failure:
        reply(error=os.strerror(failure.errno or 0))
        sys.exit(5)
