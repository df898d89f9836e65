"""Child processes of the supervisor: the same measured bundle in another role, with inherited descriptors only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from engine.errors import RunError
from engine.worker.channel import TIMEOUT, Channel, pair
from engine.worker.isolation.binding import BIND_NOW
from engine.worker.isolation.procfs import start_time
from engine.worker.oom import OomWatch

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INHERITED: Final = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "NVIDIA_VISIBLE_DEVICES", "TZ")
POLL_SECONDS: Final = 0.2
EXIT_SECONDS: Final = 30.0
TAIL_BYTES: Final = 4096
TAIL_LINES: Final = 3
TAIL_TEXT: Final = 400


class Bundle:
    """The sealed memfd that this process runs from, and the folders of third-party code."""

    def __init__(self, sites: Sequence[str]) -> None:
        self.path = sys.argv[0]
        self.fd = int(self.path.rsplit("/", 1)[1])
        self.sites = tuple(sites)

    def content(self) -> bytes:
        """The bundle's bytes."""
        size = os.fstat(self.fd).st_size
        return os.pread(self.fd, size, 0)


class Child:
    """A running child and its channel. A message of kind `error` is raised as a `RunError` with the child's code."""

    def __init__(
        self, role: str, process: subprocess.Popen[bytes], channel: Channel, quoted_log: Path | None = None
    ) -> None:
        """`quoted_log`: the file with its stderr, if that may be quoted when the child dies."""
        self.role = role
        self.process = process
        self.channel = channel
        self.pid = process.pid
        self.start = start_time(process.pid) or 0
        self._quoted_log = quoted_log
        self._oom = OomWatch()

    def expect(
        self,
        kind: str,
        seconds: float,
        *,
        meanwhile: Callable[[], None] | None = None,
        others: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Wait for the message `kind`; others go to `others`; `meanwhile` runs between polls and may raise."""
        return self.expect_with(kind, seconds, meanwhile=meanwhile, others=others)[0]

    def expect_with(
        self,
        kind: str,
        seconds: float,
        *,
        meanwhile: Callable[[], None] | None = None,
        others: Callable[[dict[str, Any]], None] | None = None,
    ) -> tuple[dict[str, Any], list[int]]:
        """Like `expect`, with the descriptors that came with the message."""
        until = time.monotonic() + seconds
        while True:
            if meanwhile is not None:
                meanwhile()
            try:
                message, fds = self.channel.recv(POLL_SECONDS)
            except RunError as error:
                if error.code != TIMEOUT:
                    raise self._died() from error
                if time.monotonic() > until:
                    raise RunError(
                        f"The {self.role} did not send {kind!r} within {seconds:.0f} s.",
                        "Look at the last lines of the run's log.",
                        code="worker_stuck",
                    ) from error
                continue
            if message.get("msg") == kind:
                return message, fds
            if message.get("msg") == "error":
                raise RunError(
                    str(message.get("message") or f"The {self.role} failed."),
                    str(message.get("hint") or ""),
                    code=str(message.get("code")),
                )
            if others is not None:
                others(message)

    def ask(self, message: dict[str, Any], answer: str, seconds: float, fds: Sequence[int] = ()) -> dict[str, Any]:
        """Send a message, with descriptors over a socket, and wait for its answer."""
        try:
            self.channel.send(message, fds)
        except RunError as error:
            raise self._died() from error
        return self.expect(answer, seconds)

    def _died(self) -> RunError:
        status, name = self._wait(EXIT_SECONDS), self.role.split(" ")[0]
        if status == -signal.SIGKILL and self._oom.killed(self.pid):
            sentence = f"The {self.role} was killed by the kernel, because memory ran out."
            return RunError(sentence, code=f"{name}_out_of_memory")
        if status == -signal.SIGKILL:
            doubt = "if you did not do it, the machine may have run out of memory"
            return RunError(f"The {self.role} was killed by signal 9; {doubt}.", code=f"{name}_killed")
        how = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
        last = "" if self._quoted_log is None else last_words(self._quoted_log)
        quoted = f" Its last words: {last}" if last else ""
        return RunError(f"The {self.role} ended {how} before it had finished.{quoted}", code=f"{name}_worker_died")

    def _wait(self, seconds: float) -> int | None:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def finish(self, seconds: float = EXIT_SECONDS) -> int | None:
        """Wait for the child to exit; kill it if it does not. Returns its exit status."""
        status = self._wait(seconds)
        if status is None:
            self.kill()
            status = self.process.returncode
        self.channel.close()
        return status

    def require_alive(self) -> None:
        """Raise `RunError` when the child has ended."""
        if self.process.poll() is not None:
            raise self._died()

    def end_by(self, until: float) -> None:
        """Wait for the child to exit until this time of the monotonic clock, then kill it."""
        self._wait(max(0.0, until - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """Kill the child now, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self._wait(EXIT_SECONDS)


def _start(
    bundle: Bundle, role: str, arguments: Sequence[str], *, fds: Sequence[int], env: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", "-B", bundle.path, *role.split(" "), *arguments]
    for site in bundle.sites:
        command += ["--site", site]
    base = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": str(log.parent)}
    base |= {name: os.environ[name] for name in INHERITED if name in os.environ}
    with log.open("ab") as sink:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**base, **BIND_NOW, **env},
            cwd="/",
            pass_fds=[bundle.fd, *fds],
            close_fds=True,
        )


def last_words(log: Path) -> str:
    """The last lines of a process's stderr on one bounded line, without control characters."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    text = " / ".join(line.strip() for line in [line for line in lines if line.strip()][-TAIL_LINES:])
    return "".join(char if char.isprintable() else " " for char in text[-TAIL_TEXT:])


def spawn_on_pipes(
    bundle: Bundle,
    role: str,
    arguments: Sequence[str],
    *,
    fds: Sequence[int],
    env: Mapping[str, str],
    log: Path,
    is_quotable: bool = False,
) -> Child:
    """Start the bundle in a role that communicates over two pipes, and so can neither send nor receive descriptors.

    `is_quotable`: whether its stderr may be quoted; never that of a process that holds plaintext.
    """
    ours_read, theirs_write = os.pipe()
    theirs_read, ours_write = os.pipe()
    ends = ["--read", str(theirs_read), "--write", str(theirs_write)]
    try:
        process = _start(bundle, role, [*ends, *arguments], fds=[theirs_read, theirs_write, *fds], env=env, log=log)
    finally:
        os.close(theirs_read)
        os.close(theirs_write)
    return Child(role, process, Channel(ours_read, ours_write), log if is_quotable else None)


def spawn_on_socket(
    bundle: Bundle, role: str, arguments: Sequence[str], *, fds: Sequence[int], env: Mapping[str, str], log: Path
) -> Child:
    """Start the bundle in a role that communicates over a socketpair, with descriptors beside its messages."""
    ours, theirs = pair()
    with theirs:
        end = theirs.fileno()
        process = _start(bundle, role, ["--channel", str(end), *arguments], fds=[end, *fds], env=env, log=log)
    return Child(role, process, Channel(ours.detach()))
