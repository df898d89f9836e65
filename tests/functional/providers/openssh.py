"""A real OpenSSH server on a loopback port; tests skip visibly if it is not installed."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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


def _prepared(folder: Path, shell: str | None, home: Path | None, mounts: Sequence[str]) -> str:
    """Shell commands that give this server its own accounts and file systems."""
    lines = Path("/etc/passwd").read_text().splitlines()
    fields = next(line for line in lines if line.startswith(f"{USER}:")).split(":")
    fields[5], fields[6] = str(home or fields[5]), shell or fields[6]
    accounts = folder / "passwd"
    accounts.write_text(":".join(fields) + "\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
    return " && ".join([f"mount --bind {shlex.quote(str(accounts))} /etc/passwd", *mounts, ""])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


NAMESPACE: Final = ("unshare", "--mount", "sh", "-c")


def need_accounts() -> None:
    """Skip visibly where a server cannot have accounts and file systems of its own."""
    probe = [*NAMESPACE, "mount --bind /etc/passwd /etc/passwd"]
    if os.geteuid() or shutil.which("unshare") is None or subprocess.run(probe, check=False).returncode:
        pytest.skip("another login shell or home needs a mount namespace: run as root, with util-linux installed")


@contextmanager
def openssh(
    folder: Path,
    environment: dict[str, str] | None = None,
    *,
    config: Sequence[str] = (),
    options: str = "",
    host: asyncssh.SSHKey | None = None,
    login_shell: str | None = None,
    home: Path | None = None,
    mounts: Sequence[str] = (),
) -> Iterator[Sshd]:
    """A server in `folder`; `environment` is added to that of its sessions.

    `config` are lines of sshd_config that come before ours, `options` those of the client's key in authorized_keys, and
    `host` is its host key. `login_shell` and `home` are those of the login, and `mounts` shell commands that prepare
    file systems: only this server sees them, in a mount namespace of its own (the test is skipped where there is none).
    """
    tool = _tool()
    private = login_shell is not None or home is not None or bool(mounts)
    if private:
        need_accounts()
    host = host or asyncssh.generate_private_key("ssh-ed25519")
    client = asyncssh.generate_private_key("ssh-ed25519")
    for name, key in (("host", host), ("client", client)):
        (folder / name).touch(0o600)
        (folder / name).write_bytes(key.export_private_key())
    (folder / "authorized").write_bytes(f"{options} ".encode() * bool(options) + client.export_public_key())
    port = _free_port()
    # sshd takes the first value that it reads of most settings.
    lines = [
        *config,
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
        "AllowAgentForwarding yes",
        "LogLevel VERBOSE",
        "MaxStartups 100",
    ]
    if not any(line.startswith("Subsystem") for line in config):
        lines.append("Subsystem sftp internal-sftp")
    if environment:
        lines.append("SetEnv " + " ".join(f'"{name}={value}"' for name, value in environment.items()))
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    command = [tool, "-D", "-e", "-f", str(folder / "sshd_config")]
    if private:
        command = [*NAMESPACE, _prepared(folder, login_shell, home, mounts) + f"exec {shlex.join(command)}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
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
