"""Inspects an allocation's Python and installs a lock there, with the standard library and the allocation's own pip.

Runs on the allocation as `python -I -B -c SOURCE VERB ...` and prints one JSON line:

`probe ROOT`: the interpreter, the machine and the free space at ROOT.
`inventory SITE...`: the distributions in these folders.
`begin FOLDER SHA256 [INDEX]`: installs FOLDER/lock.txt into FOLDER/venv, detached, unless that is done or under way.
`look FOLDER`: the progress of that installation.
`end FOLDER`: kills an installation that is under way.

An installation holds FOLDER/install.lock until its end, so that `look` can tell a live one from a dead one.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

KEPT = (
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "LD_LIBRARY_PATH",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
READY, STATE, LOG, LOCK, INSTALLING = "ready.json", "state.json", "install.log", "lock.txt", "install.lock"
TAIL_BYTES = 4000
BUSY_SECONDS = 2.0
MOST_DISTRIBUTIONS = 4000


def reply(**fields: Any) -> int:
    """Print the answer."""
    print(json.dumps(fields), flush=True)
    return 0


def pip_version() -> str | None:
    """The version of this interpreter's pip; None without one."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("pip")
    return None


def cuda_version() -> str | None:
    """The newest CUDA version that the GPU's driver supports; empty if it is not reported, None without a GPU."""
    tool = shutil.which("nvidia-smi", path=f"{PATH}:{os.environ.get('PATH', '')}")
    if tool is None:
        return None
    try:
        result = subprocess.run([tool], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if result.returncode != 0:
        return None
    match = re.search(r"CUDA[^:|]*Version:\s*([0-9.]+)", result.stdout)
    return match[1] if match else ""


def probe(root: str) -> int:
    """The facts about interpreter and machine that an environment must fit."""
    folder = Path(root).absolute()
    Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    disk = os.statvfs(folder)
    return reply(
        root=str(folder),
        executable=sys.executable,
        version=platform.python_version(),
        implementation=sys.implementation.name,
        machine=platform.machine(),
        glibc=platform.libc_ver()[1],
        free=disk.f_bavail * disk.f_frsize,
        noexec=bool(disk.f_flag & os.ST_NOEXEC),
        pip=pip_version(),
        sites=[
            path for path in sys.path if path.endswith(("/site-packages", "/dist-packages")) and Path(path).is_dir()
        ],
        cuda=cuda_version(),
    )


def inventory(sites: list[str]) -> int:
    """Name, version and requirements of every distribution; of two with the same name the first, which is imported."""
    distributions: dict[str, Any] = {}
    for one in importlib.metadata.distributions(path=sites):
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower()
        distributions.setdefault(name, {"version": one.version, "requires": list(one.requires or ())})
        if len(distributions) > MOST_DISTRIBUTIONS:
            break
    return reply(distributions=distributions)


def take_lock(folder: Path, kind: int) -> int | None:
    """A descriptor that holds the lock; None while an installation holds it."""
    descriptor = os.open(folder / INSTALLING, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + (BUSY_SECONDS if kind == fcntl.LOCK_EX else 0.0)
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                return None
            time.sleep(0.02)
        else:
            return descriptor


def read(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty if it is missing or invalid."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write(path: Path, **fields: Any) -> None:
    """Replace a JSON file atomically."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(fields), encoding="ascii")
    part.replace(path)


def log_of(folder: Path) -> bytes:
    """The installation's output so far."""
    with contextlib.suppress(OSError):
        return (folder / LOG).read_bytes()
    return b""


def look(folder: Path) -> int:
    """Report the progress of the installation."""
    if not folder.is_dir():
        return reply(state="absent")
    ready = read(folder / READY)
    if ready:
        return reply(state="ready", **ready)
    log = log_of(folder)
    lock = take_lock(folder, fcntl.LOCK_SH)
    if lock is not None:
        os.close(lock)
        ready = read(folder / READY)  # it may have finished since the first check
        if ready:
            return reply(state="ready", **ready)
        state = read(folder / STATE)
        outcome = "failed" if state else "absent"
        tail = log[-TAIL_BYTES:].decode("utf-8", "replace")
        return reply(state=outcome, why=str(state.get("why", "ended")), tail=tail)
    fetched = len(re.findall(rb"^Collecting ", log, re.MULTILINE))
    unpacking = b"\nInstalling collected packages" in log
    unpacked = len(list(folder.glob("venv/lib/python*/site-packages/*.dist-info")))
    phase = "compiling" if b"\ncompiling" in log else "installing" if unpacking else "fetching"
    return reply(state="installing", phase=phase, done=unpacked if unpacking else fetched)


def begin(folder: Path, digest: str, index: str) -> int:
    """Start the installation, or report the one that is done or under way."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = take_lock(folder, fcntl.LOCK_EX)
    if lock is None or read(folder / READY):
        return look(folder)
    if sha256((folder / LOCK).read_bytes()).hexdigest() != digest:
        return reply(state="failed", why="lock_differs", tail="")
    for old in (LOG, STATE):
        (folder / old).unlink(missing_ok=True)
    write(folder / STATE, state="installing", pid=0)
    if os.fork() == 0:
        try:
            detach(folder)
            install(folder, digest, index, lock)
        finally:
            os._exit(1)
    return reply(state="installing", phase="fetching", done=0)


def detach(folder: Path) -> None:
    """Leave the SSH server's session and its descriptors; the lock's descriptor stays open."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    write(folder / STATE, state="installing", pid=os.getpid())


def install(folder: Path, digest: str, index: str, lock: int) -> None:
    """The whole installation, in the detached process; its outcome is in `ready.json` or `state.json`.

    Each step inherits the lock, so that one that outlives this process still counts as an installation under way.
    """
    began = time.monotonic()
    venv, temporary = folder / "venv", folder / "tmp"
    for old in (venv, temporary):
        shutil.rmtree(old, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    env = {name: value for name, value in os.environ.items() if name in KEPT}
    env |= {"PATH": PATH, "HOME": str(temporary), "TMPDIR": str(temporary), "LANG": "C.UTF-8"}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}
    python = str(venv / "bin" / "python")
    pip = [sys.executable, "-I", "-B", "-m", "pip", "--isolated", "--python", python, "install", "--require-hashes"]
    pip += ["--only-binary", ":all:", "--no-deps", "--no-compile", "--no-cache-dir", "--no-input"]
    pip += ["--disable-pip-version-check", "--progress-bar", "off", "-r", str(folder / LOCK)]
    pip += ["--index-url", index] if index else []
    steps = (
        ("venv", [sys.executable, "-I", "-B", "-m", "venv", "--without-pip", "--symlinks", str(venv)]),
        ("pip", pip),
    )
    for step, command in steps:
        if subprocess.run(command, env=env, cwd=folder, pass_fds=[lock], check=False).returncode != 0:
            write(folder / STATE, state="failed", why=step)
            return
    site = next((venv / "lib").glob("python*/site-packages"))
    without_scripts(venv, site)
    # Compiled caches that depend only on the sources: the same environment has the same digest on every allocation.
    print("\ncompiling", flush=True)
    caches = [python, "-I", "-B", "-m", "compileall", "-qq", "-j", "0", "-s", str(site)]
    subprocess.run([*caches, "--invalidation-mode", "unchecked-hash", str(site)], env=env, cwd=folder, check=False)
    shutil.rmtree(temporary, ignore_errors=True)
    write(folder / READY, lock=digest, python=python, site=str(site), seconds=time.monotonic() - began)


def without_scripts(venv: Path, site: Path) -> None:
    """Remove the packages' commands, and their lines from each RECORD.

    A command's first line is the path of this environment, so its hash in RECORD would give the same installation
    another digest below another root. Nothing here runs a command.
    """
    for record in site.glob("*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        commands = [line for line in lines if line.lstrip('"').startswith("../../../bin/")]
        if commands:
            record.write_text("".join(line for line in lines if line not in commands), encoding="utf-8")
        for line in commands:
            name = line.lstrip('"').removeprefix("../../../bin/").split(",")[0].rstrip('"')
            if "/" not in name and not name.startswith(("python", "activate", "Activate")):
                (venv / "bin" / name).unlink(missing_ok=True)


def end(folder: Path) -> int:
    """Kill a live installation and everything that it started."""
    pid = int(read(folder / STATE).get("pid", 0))
    lock = take_lock(folder, fcntl.LOCK_SH)
    if lock is None and pid > 1:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    return reply(state="ended")


def main(verb: str, *words: str) -> int:
    """Run one verb."""
    os.umask(0o077)
    if verb == "probe":
        return probe(words[0])
    if verb == "inventory":
        return inventory(list(words))
    folder = Path(words[0])
    if verb == "begin":
        return begin(folder, words[1], words[2] if len(words) > 2 else "")
    return look(folder) if verb == "look" else end(folder)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except OSError as failure:
        reply(error=os.strerror(failure.errno or 0))
        sys.exit(5)
