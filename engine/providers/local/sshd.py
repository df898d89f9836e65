"""The local allocation's SSH server, which runs in its own process.

`python -m engine.providers.local.sshd --dir FOLDER` listens on 127.0.0.1 only, on the port of its previous start if
that is free, with the host key from its folder, and accepts one client key. Each command is a real process in its own
session, so that a detached one outlives this server. It exits on SIGTERM, or when its folder is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncssh
import msgspec

from engine.providers.local import files
from engine.providers.local.sftp import RootedSftp
from engine.remote.connect import CIPHERS
from engine.remote.programs.launcher import ENVIRONMENT
from engine.system.files import write_private
from engine.system.processes import live_process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

HOST: Final = "127.0.0.1"
SHELL: Final = "/bin/sh"
BLOCK: Final = 64 * 1024
WATCH_SECONDS: Final = 1.0
_INTERRUPTIONS: Final = (asyncssh.BreakReceived, asyncssh.SignalReceived, asyncssh.TerminalSizeChanged)
_ENDED: Final = (BrokenPipeError, ConnectionResetError, asyncssh.Error)


class SingleKeyServer(asyncssh.SSHServer):
    """Accepts one user with one key; forwarding is refused."""

    def __init__(self, allowed: asyncssh.SSHKey) -> None:
        self._allowed = allowed

    def begin_auth(self, username: str) -> bool:
        """True: authentication is always required."""
        return True

    def public_key_auth_supported(self) -> bool:
        """True: the only method."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """True for the user and the key of this allocation."""
        return username == files.USER and key.public_data == self._allowed.public_data


class Commands:
    """Runs a client's commands in the allocation's root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._environment = {name: value for name, value in os.environ.items() if name in ENVIRONMENT}

    async def __call__(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Serve one `exec` request; a request for a shell is refused."""
        if not process.command:
            process.stderr.write(b"only commands are served\n")
            process.exit(1)
            return
        child = await asyncio.create_subprocess_exec(
            SHELL,
            "-c",
            process.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._root,
            env=self._environment,
            start_new_session=True,
        )
        if child.stdin is None or child.stdout is None or child.stderr is None:
            raise RuntimeError("the command has no pipes")
        feeding = asyncio.create_task(_pump(process.stdin.read, child.stdin))
        try:
            await asyncio.gather(_pump(child.stdout.read, process.stdout), _pump(child.stderr.read, process.stderr))
            status = await child.wait()
        finally:
            feeding.cancel()
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)


async def _pump(
    read: Callable[[int], Awaitable[bytes]], sink: asyncio.StreamWriter | asyncssh.SSHWriter[bytes]
) -> None:
    """Copy to the end of the source, then close a pipe; once the sink is gone the rest is discarded."""
    is_open = True
    try:
        while block := await read(BLOCK):
            if is_open:
                is_open = await _write(sink, block)
        if is_open and isinstance(sink, asyncio.StreamWriter):
            sink.write_eof()  # an SSH channel has one EOF for both outputs; the exit status sends it
    except (*_INTERRUPTIONS, *_ENDED):
        return


async def _write(sink: asyncio.StreamWriter | asyncssh.SSHWriter[bytes], block: bytes) -> bool:
    try:
        sink.write(block)
        await sink.drain()
    except _ENDED:
        return False
    return True


async def serve(folder: Path) -> None:
    """Listen until SIGTERM or until the folder is gone; the ready file is written once connections are accepted."""
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    listener = await _listen(folder)
    process = live_process(os.getpid())
    if process is None:
        raise RuntimeError("this process is not in /proc")
    ready = files.Ready(
        port=listener.get_port(),
        host_key=asyncssh.read_private_key(folder / files.HOST_KEY).export_public_key().decode().strip(),
        pid=process.pid,
        start=process.start,
    )
    write_private(folder / files.READY, msgspec.json.encode(ready))
    identity = _inode(folder)
    while not ending.is_set() and _inode(folder) == identity:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), WATCH_SECONDS)
    listener.close()


async def _listen(folder: Path) -> asyncssh.SSHAcceptor:
    """Listen on the port of the previous start, or on any free one when another process has it."""
    previous = files.read_ready(folder)
    host_key = asyncssh.read_private_key(folder / files.HOST_KEY)
    allowed = asyncssh.read_public_key(folder / files.CLIENT_PUBLIC_KEY)
    root = folder / files.ROOT
    for port in (previous.port if previous else 0, 0):
        try:
            return await asyncssh.listen(
                HOST,
                port,
                server_factory=lambda: SingleKeyServer(allowed),
                server_host_keys=[host_key],
                process_factory=Commands(root),
                sftp_factory=lambda channel: RootedSftp(channel, str(root)),
                encoding=None,
                config=None,
                password_auth=False,
                kbdint_auth=False,
                host_based_auth=False,
                gss_host=None,
                allow_pty=False,
                allow_scp=False,
                line_editor=False,
                agent_forwarding=False,
                x11_forwarding=False,
                compression_algs=None,
                encryption_algs=list(CIPHERS),
                keepalive_interval=15,
                login_timeout=30,
                reuse_address=True,
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == 0:
                raise
    raise RuntimeError("no port was tried")


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def main(argv: Sequence[str]) -> int:
    """Serve one folder; with `--detach` return at once and serve in a child process."""
    parser = argparse.ArgumentParser("engine.providers.local.sshd")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--detach", action="store_true")
    options = parser.parse_args(argv)
    os.umask(0o077)
    if options.detach and os.fork():
        os._exit(0)
    asyncio.run(serve(options.dir))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
