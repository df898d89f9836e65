"""A pod's container: a process tree in its own namespaces, with a real sshd, which dies with this program."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE: Final = Path(__file__).parent / "image"
HOST: Final = "127.0.0.1"
LINES: Final = 5000
STRANGER: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG9gUpXFG7LW+YToCOxtE2jEFzdu4eQSYSGfbfXy5yke stranger@example"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STARTING_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.01
_LAUNCHER: Final = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--mount", "--fork", "--mount-proc")


@dataclass(frozen=True)
class Image:
    """The parameters of a pod's container. `disk_mib` 0 means no limit; times in seconds."""

    args: str
    env: dict[str, str]
    ssh_delay: float = 0.0
    other_host_key: bool = False
    print_other: bool = False
    other_client_key: bool = False
    disk_mib: int = 0


@dataclass(frozen=True)
class Line:
    """One line that the container printed; `number` counts from 1 over the pod's life."""

    number: int
    at: str
    text: str


class Log:
    """The newest lines of a pod, and a way to wait for more."""

    def __init__(self) -> None:
        self.lines: deque[Line] = deque(maxlen=LINES)
        self.grown = asyncio.Event()
        self._count = 0

    def add(self, text: str) -> None:
        """Append a line and wake the waiters."""
        self._count += 1
        self.lines.append(Line(self._count, datetime.now(UTC).isoformat().replace("+00:00", "Z"), text))
        self.wake()

    def wake(self) -> None:
        """Wake the tasks that wait for lines."""
        self.grown.set()
        self.grown = asyncio.Event()


class Container:
    """At most one process tree at a time; `on_exit` is called when it exits by itself."""

    def __init__(self, folder: Path, image: Image, held: socket.socket, log: Log, on_exit: Callable[[], None]) -> None:
        self.folder = folder
        self.image = image
        self.port: int = held.getsockname()[1]
        """The port of its sshd on 127.0.0.1, reserved as long as the pod exists."""
        self.pid: int | None = None
        """The container's PID 1 in this machine's PID namespace."""
        self._log = log
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._held = held

    async def start(self, *, wipe: bool = True) -> None:
        """Start a new process tree; `wipe` empties the disk first."""
        await asyncio.to_thread(self._write_files, wipe)
        image = self.image
        command = shlex.split(image.args) or ["bash", str(self.folder / "start.sh")]
        self._process = await asyncio.create_subprocess_exec(
            *_LAUNCHER,
            "--kill-child=SIGKILL",
            "bash",
            str(self.folder / "enter.sh"),
            str(self.folder),
            str(image.disk_mib),
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self.environment(),
            start_new_session=True,
        )
        self._watching = asyncio.create_task(self._watch(self._process))
        self.pid = await self._first_child(self._process)

    def environment(self) -> dict[str, str]:
        """The environment of the container's first process."""
        return {
            "PATH": _PATH,
            "HOME": str(self.folder / "root"),
            "LANG": "C.UTF-8",
            "GLASSHOUSE_IMAGE_START": str(self.folder / "start.sh"),
            **self.image.env,
        }

    async def kill(self) -> None:
        """Kill all its processes and wait until none is left; does nothing if none run."""
        process, watching = self._process, self._watching
        self._process = None
        if process is None or watching is None:
            return
        _signal(self.pid or process.pid, signal.SIGKILL)
        await process.wait()
        await watching
        self.pid = None

    async def discard(self) -> None:
        """Kill it and release its port."""
        await self.kill()
        self._held.close()

    async def move(self) -> None:
        """Listen on another port with the same key; connections end."""
        self._held.close()
        self._held = held_port()
        self.port = self._held.getsockname()[1]
        await asyncio.to_thread(self._write_sshd_config)
        for process in self.listeners():
            process.send_signal(signal.SIGHUP)
        self.signal_links(signal.SIGKILL)

    def signal_links(self, number: signal.Signals) -> int:
        """Signal the processes of open SSH connections, not the server; returns how many there were."""
        links = [
            child for listener in self.listeners() for child in listener.children(recursive=True) if _is_sshd(child)
        ]
        for link in links:
            with contextlib.suppress(psutil.NoSuchProcess):
                link.send_signal(number)
        return len(links)

    def listeners(self) -> list[psutil.Process]:
        """Its running sshd processes that listen."""
        if self.pid is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            servers = [child for child in psutil.Process(self.pid).children(recursive=True) if _is_sshd(child)]
            pids = {process.pid for process in servers}
            return [process for process in servers if process.ppid() not in pids]
        return []

    def _write_files(self, wipe: bool) -> None:
        folder = self.folder
        if wipe:
            for name in ("root", "etc"):
                shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "root").mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "etc" / "ssh").mkdir(parents=True, exist_ok=True)
        (folder / "etc" / "other_key").unlink(missing_ok=True)
        for name in ("enter.sh", "start.sh"):
            shutil.copy(IMAGE / name, folder / name)
            (folder / name).chmod(0o755)
        passwd = Path("/etc/passwd").read_text(encoding="utf-8")
        home = f"root:x:0:0:root:{folder / 'root'}:/bin/bash"
        (folder / "etc" / "passwd").write_text(re.sub(r"(?m)^root:.*$", lambda _: home, passwd), encoding="utf-8")
        image = self.image
        values = {
            "OTHER_HOST_KEY": "yes" if image.other_host_key else "",
            "PRINT_OTHER": "yes" if image.print_other else "",
            "OTHER_CLIENT_KEY": STRANGER if image.other_client_key else "",
            "SSH_DELAY": f"{image.ssh_delay:g}",
        }
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in values.items()]
        (folder / "image.conf").write_text("".join(lines), encoding="utf-8")
        self._write_sshd_config()

    def _write_sshd_config(self) -> None:
        host_key = f"{self.folder}/etc/other_key" if self.image.other_host_key else "/etc/ssh/ssh_host_ed25519_key"
        lines = [
            f"ListenAddress {HOST}",
            f"Port {self.port}",
            f"HostKey {host_key}",
            f"AuthorizedKeysFile {self.folder}/root/.ssh/authorized_keys",
            f"SetEnv RUNPOD_POD_ID={self.image.env.get('RUNPOD_POD_ID', '')}",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "StrictModes no",
            "UsePAM no",
            "UseDNS no",
            "MaxStartups 100",
            "PidFile none",
            "Subsystem sftp internal-sftp",
            *(["PerSourcePenalties no"] if sshd_version() >= (9, 8) else []),
        ]
        (self.folder / "etc" / "ssh" / "sshd_config").write_text("\n".join([*lines, ""]), encoding="utf-8")

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        # An overlong line raises ValueError: the log stops there.
        with (self.folder / "container.log").open("ab", buffering=0) as file, contextlib.suppress(ValueError):
            async for line in process.stdout:
                file.write(line)
                self._log.add(line.decode(errors="replace").rstrip("\n"))
        await process.wait()
        if self._process is process:
            self._process, self.pid = None, None
            self._on_exit()

    async def _first_child(self, process: asyncio.subprocess.Process) -> int | None:
        """The PID of `enter.sh`; None if it has exited already."""
        for _ in range(int(_STARTING_SECONDS / _POLL_SECONDS)):
            with contextlib.suppress(psutil.NoSuchProcess):
                if children := psutil.Process(process.pid).children():
                    return int(children[0].pid)
            if process.returncode is not None:
                return None
            await asyncio.sleep(_POLL_SECONDS)
        raise RuntimeError("a container did not start")


def held_port() -> socket.socket:
    """A bound socket that never listens: the kernel gives its port to nobody else, but sshd, which also sets
    SO_REUSEADDR, may listen there.
    """
    held = socket.socket()
    held.bind((HOST, 0))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return held


def _is_sshd(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name().startswith("sshd")
    return False


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


_VERSION: list[tuple[int, int]] = []


def sshd_version() -> tuple[int, int]:
    """The OpenSSH server's version, queried once."""
    if not _VERSION:
        version = subprocess.run(["/usr/sbin/sshd", "-V"], capture_output=True, text=True, check=False).stderr
        match = re.search(r"OpenSSH_(\d+)\.(\d+)", version)
        _VERSION.append((int(match[1]), int(match[2])) if match else (0, 0))
    return _VERSION[0]
