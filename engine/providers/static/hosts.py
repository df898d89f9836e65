"""What is done on a static host: knowing it by its key, asking what it is, removing what a run left there."""

from __future__ import annotations

import contextlib
import hmac
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncssh

from engine.errors import RemoteError
from engine.providers import processes
from engine.remote.connect import mismatch, pinned_key, shown_host_key
from engine.remote.host_lock import free_lock

if TYPE_CHECKING:
    from engine.providers.settings import HostSettings
    from engine.remote.endpoint import LinkLimits
    from engine.remote.session import SshSession

KINDS: Final = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256",),
    ("ecdsa-sha2-nistp384",),
    ("ecdsa-sha2-nistp521",),
    ("rsa-sha2-512", "rsa-sha2-256"),
)
GRACE_SECONDS: Final = 3.0
_END: Final = """

def main(folder, grace):
    import json
    place = Path(folder)
    try:
        told = json.loads((place / "launched.json").read_bytes())
        launched = {(int(told["pid"]), int(told["start"]))}
    except (OSError, ValueError, KeyError, TypeError):
        launched = set()
    return 1 if end(of_folder(place, launched), float(grace)) else 0


import sys
sys.exit(main(*sys.argv[1:]))
"""


async def trusted_line(host: HostSettings, known: str | None, limits: LinkLimits) -> str:
    """The public key line to pin: as configured, or `known` or what the host shows where a fingerprint is configured.

    Raises `RemoteError`: `host_key_mismatch` when it shows no key with that fingerprint, `connect_failed`.
    """
    if not host.host_key.startswith("SHA256:"):
        return host.host_key
    if known is not None and _same(pinned_key(known), host.host_key):
        return known
    first = await shown_host_key(host.address, host.port, limits)
    if _same(first, host.host_key):
        return _line(first)
    for kinds in KINDS:
        # A server without a key of this kind hangs up.
        with contextlib.suppress(RemoteError):
            other = await shown_host_key(host.address, host.port, limits, kinds)
            if _same(other, host.host_key):
                return _line(other)
    raise mismatch(f"{host.address}:{host.port}")


async def home_of(session: SshSession) -> str:
    """The login's home, as an absolute path."""
    sftp = await session.sftp()
    try:
        found = str(await sftp.realpath("."))
    except asyncssh.SFTPError as error:
        raise RemoteError("The host does not tell the login's home.", code="remote_failed") from error
    if not found.startswith("/"):
        raise RemoteError("The host does not tell the login's home.", code="remote_failed")
    return found


async def gpu_of(session: SshSession) -> str:
    """The first GPU's name as its driver tells it, or `CPU (MODEL)` without one."""
    told = await session.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    if told.exit_status == 0 and told.stdout.strip():
        return _shown(told.stdout.splitlines()[0])
    told = await session.run(["grep", "-m1", "^model name", "/proc/cpuinfo"])
    return f"CPU ({_shown(told.stdout.partition(b':')[2]) or 'unknown'})"


async def remove_run(session: SshSession, python: str, root: str, run_id: str) -> None:
    """End the run's processes, remove its folder, free the host's lock; done already is done.

    Raises `RemoteError`: `remote_failed` when a process would not end or the folder stays, and the link's codes.
    """
    folder = posixpath.join(root, run_id)
    if await session.exists(folder):
        told = await session.run([python, "-I", "-S", "-B", "-c", _ender(), folder, str(GRACE_SECONDS)])
        if told.exit_status != 0:
            raise RemoteError("Processes of the run would not end on the host.", code="remote_failed")
        await session.remove_tree(folder)
    if await session.exists(root):
        await free_lock(session, root, run_id, python)


def _ender() -> str:
    """The program that ends a run's processes there: what this machine uses for its own."""
    return Path(processes.__file__).read_text(encoding="utf-8") + _END


def _line(key: asyncssh.SSHKey) -> str:
    return key.export_public_key().decode().strip()


def _same(key: asyncssh.SSHKey, fingerprint: str) -> bool:
    return hmac.compare_digest(key.get_fingerprint().rstrip("="), fingerprint.rstrip("="))


def _shown(line: bytes) -> str:
    """A model's name as the host writes it: printable and short."""
    return "".join(one for one in line.decode("ascii", "ignore") if one.isprintable()).strip()[:64]
