"""Starts the supervisor from measured bytes.

Runs on the allocation as `python -I -S -B -c SOURCE BUNDLE SHA256 RUN_DIR [SITE...]`, with the standard library alone.
The bundle is read once into sealed memory, hashed there and run from there in its own session, so that the bytes that
run are those that were measured. A second launch in the same run folder returns the first supervisor. Prints one JSON
line: `{"pid", "start", "bundle"}` of the supervisor, or `{"error"}` with exit status 3 when the bytes differ, 4 when a
supervisor ran here and has ended, 5 for anything else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, NoReturn

LIMIT = 64 * 1024 * 1024
BLOCK = 1024 * 1024
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
RECORD = Path("launched.json")
TRACES = (Path("supervisor.json"), Path("events.jsonl"))
ENVIRONMENT = frozenset(
    {
        "CUDA_HOME",
        "CUDA_VISIBLE_DEVICES",
        "GLASSHOUSE_ALLOCATION",
        "HF_ENDPOINT",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HOME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "LANG",
        "LC_ALL",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "NO_PROXY",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_VISIBLE_DEVICES",
        "PATH",
        "REQUESTS_CA_BUNDLE",
        "RUNPOD_POD_ID",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
    }
)
# The supervisor maps plaintext: bound lazily, a first call would save the vector registers on its stack.
BIND_NOW = {"LD_BIND_NOW": "1"}


def finish(status: int, **fields: Any) -> NoReturn:
    """Print the answer and exit."""
    print(json.dumps(fields), flush=True)
    sys.exit(status)


def start_ticks(pid: int) -> int | None:
    """When a live process started, in clock ticks since boot; None if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def measured(path: str, expected: str) -> int:
    """A descriptor of sealed memory that holds the bundle and has the expected hash."""
    source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode) or status.st_size > LIMIT:
        finish(5, error="bundle_unreadable")
    bundle = os.memfd_create("glasshouse-bundle", os.MFD_ALLOW_SEALING)
    while block := os.read(source, BLOCK):
        view = memoryview(block)
        while view:
            view = view[os.write(bundle, view) :]
    fcntl.fcntl(bundle, fcntl.F_ADD_SEALS, SEALS)
    digest = hashlib.sha256()
    os.lseek(bundle, 0, os.SEEK_SET)
    while block := os.read(bundle, BLOCK):
        digest.update(block)
    if digest.hexdigest() != expected:
        finish(3, error="bundle_digest_mismatch", found=digest.hexdigest())
    return bundle


def report_earlier() -> None:
    """Exit with the answer of an earlier launch, if its supervisor is alive or has left traces."""
    if not RECORD.exists():
        return
    record = json.loads(RECORD.read_bytes())
    if start_ticks(record["pid"]) == record["start"]:
        finish(0, **record)
    if any(trace.exists() for trace in TRACES):
        finish(4, error="supervisor_ended", **record)


def become_supervisor(go: int, fate: int, bundle: int, run_dir: str, sites: list[str]) -> NoReturn:
    """In the child: wait until the launch is recorded, then run the bundle without the SSH server's descriptors."""
    try:
        os.setsid()
        if not os.read(go, 1):
            os._exit(1)
        log = os.open("supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        for entry in Path("/proc/self/fd").iterdir():
            if int(entry.name) > 2 and int(entry.name) != bundle:
                with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
                    os.set_inheritable(int(entry.name), False)
        argv = [sys.executable, "-I", "-S", "-B", f"/proc/self/fd/{bundle}", "supervisor", "--dir", run_dir]
        for site in sites:
            argv += ["--site", site]
        kept = {name: value for name, value in os.environ.items() if name in ENVIRONMENT}
        os.execve(argv[0], argv, kept | BIND_NOW)  # noqa: S606
    except OSError as error:
        os.write(fate, os.strerror(error.errno or 0).encode())
    finally:
        os._exit(127)


def main(path: str, expected: str, run_dir: str, *sites: str) -> NoReturn:
    """Launch once."""
    os.umask(0o077)
    folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    os.fchdir(folder)
    fcntl.flock(folder, fcntl.LOCK_EX)
    report_earlier()
    bundle = measured(path, expected)
    go_read, go_write = os.pipe()
    fate_read, fate_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_write)
        become_supervisor(go_read, fate_write, bundle, run_dir, list(sites))
    os.close(fate_write)
    record = {"pid": pid, "start": start_ticks(pid), "bundle": expected}
    part = RECORD.with_suffix(".part")
    part.write_text(json.dumps(record), encoding="ascii")
    part.replace(RECORD)
    os.write(go_write, b"g")
    if failure := os.read(fate_read, BLOCK):
        RECORD.unlink()
        finish(5, error="supervisor_not_started", reason=failure.decode())
    finish(0, **record)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        finish(5, error="launch_failed", reason=os.strerror(error.errno or 0))
