"""A real OpenSSH server on a loopback port; tests skip visibly if it is not installed."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import psutil
import pytest

from engine.providers.settings import HostSettings

USER = getpass.getuser()


def _tool() -> str:
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip("sshd is missing: install the package openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as its service does
    return found


@dataclass
class Sshd:
    """One server, its host key, and a client key that it accepts."""

    folder: Path
    port: int
    host_key: asyncssh.SSHKey
    process: subprocess.Popen[bytes]

    @property
    def line(self) -> str:
        return self.host_key.export_public_key().decode().strip()

    @property
    def client_key(self) -> Path:
        return self.folder / "client"

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text()

    def settings(self, name: str = "box", **more: object) -> HostSettings:
        """This server as a `[[host]]` of config.toml."""
        fields: dict[str, object] = {
            "name": name,
            "address": "127.0.0.1",
            "user": USER,
            "port": self.port,
            "gpu": "A Test GPU",
            "key": str(self.client_key),
            "root": str(self.folder / "root"),
            "host_key": self.line,
            "python": "python3",
        }
        return HostSettings(**{**fields, **more})  # type: ignore[arg-type]

    def cut(self) -> None:
        """Kill every connection, as when the network fails; detached processes survive."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended in the meantime
                if "sshd" in child.name():
                    child.send_signal(signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def openssh(folder: Path, environment: dict[str, str] | None = None) -> Iterator[Sshd]:
    """A server in `folder`; `environment` is added to that of its sessions."""
    tool = _tool()
    host, client = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    for name, key in (("host", host), ("client", client)):
        (folder / name).touch(0o600)
        (folder / name).write_bytes(key.export_private_key())
    (folder / "authorized").write_bytes(client.export_public_key())
    port = _free_port()
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host",
        f"AuthorizedKeysFile {folder}/authorized",
        "StrictModes no",
        "UsePAM no",
        "PidFile none",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "Subsystem sftp internal-sftp",
        "AllowAgentForwarding yes",
        "LogLevel VERBOSE",
        "MaxStartups 100",
    ]
    if environment:
        lines.append("SetEnv " + " ".join(f'"{name}={value}"' for name, value in environment.items()))
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([tool, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.PIPE)
    assert process.stderr is not None
    output = b""
    for line in process.stderr:
        output += line
        if b"listening on" in line:
            break
    else:
        process.wait()
        raise RuntimeError(f"sshd did not start: {output.decode()}")
    with (folder / "sshd.log").open("wb") as log:
        copier = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)
    process.stderr.close()
    made = Sshd(folder, port, host, process)
    try:
        yield made
    finally:
        made.cut()
        process.terminate()
        process.wait()
        copier.wait()
