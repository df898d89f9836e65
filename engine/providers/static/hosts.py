"""Operations on a static host: checking its key, querying its GPU, removing what a run left there."""

from __future__ import annotations

import contextlib
import hmac
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncssh

from engine.errors import RemoteError
from engine.remote.client_keys import pinned_key
from engine.remote.connect import connected, shown_host_key, where_of_endpoint
from engine.remote.connect_errors import mismatch
from engine.remote.endpoint import Endpoint
from engine.remote.host_lock import free_lock
from engine.remote.programs import processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.providers.settings import Server
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
_TERMINATE: Final = """

def main(folder, grace):
    import json
    path = Path(folder)
    try:
        record = json.loads((path / "launched.json").read_bytes())
        launched = {(int(record["pid"]), int(record["start"]))}
    except (OSError, ValueError, KeyError, TypeError):
        launched = set()
    return 1 if terminate(of_folder(path, launched), float(grace)) else 0


import sys
sys.exit(main(*sys.argv[1:]))
"""


async def trusted_line(
    server: Server,
    known: str | None,
    limits: LinkLimits,
    jumps: Sequence[Endpoint] = (),
    label: str = "",
) -> str:
    """The public key line to pin.

    That is the configured line; or, where only a fingerprint is configured, `known` or the key that the server
    presents, if it has that fingerprint. It is asked through `jumps`, which are logged in to first. Raises
    `RemoteError`: `host_key_mismatch` when it presents no key with that fingerprint, and what `connect` raises.
    """
    if not server.host_key.startswith("SHA256:"):
        return server.host_key
    if known is not None and _same(pinned_key(known), server.host_key):
        return known
    endpoint = Endpoint(
        host=server.address,
        port=server.port,
        user=server.user,
        client_key=None,
        host_key="",
        jumps=tuple(jumps),
        label=label,
    )
    async with connected(jumps, limits) as tunnel:
        first = await shown_host_key(endpoint, limits, tunnel=tunnel)
        if _same(first, server.host_key):
            return _line(first)
        for kinds in KINDS:
            # A server without a key of this kind closes the connection.
            with contextlib.suppress(RemoteError):
                other = await shown_host_key(endpoint, limits, kinds, tunnel)
                if _same(other, server.host_key):
                    return _line(other)
    raise mismatch(where_of_endpoint(endpoint), server.host_key, first)


async def gpu_of(session: SshSession) -> str:
    """The first GPU's name as its driver reports it, or `CPU (MODEL)` without one."""
    result = await session.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    if result.exit_status == 0 and result.stdout.strip():
        return _printable(result.stdout.splitlines()[0])
    result = await session.run(["grep", "-m1", "^model name", "/proc/cpuinfo"])
    return f"CPU ({_printable(result.stdout.partition(b':')[2]) or 'unknown'})"


async def remove_run(session: SshSession, python: str, root: str, run_id: str) -> None:
    """Terminate the run's processes, remove its folder, free the host's lock; idempotent.

    Raises `RemoteError`: `remote_failed` when a process does not exit or the folder stays, and the link's codes.
    """
    folder = posixpath.join(root, run_id)
    if await session.exists(folder):
        result = await session.run([python, "-I", "-S", "-B", "-c", _program(), folder, str(GRACE_SECONDS)])
        if result.exit_status != 0:
            raise RemoteError("Processes of the run on the host did not exit.", code="remote_failed")
        await session.remove_tree(folder)
    if await session.exists(root):
        await free_lock(session, root, run_id, python)


def _program() -> str:
    """The program that terminates a run's processes there: the same code that the local provider uses here."""
    return Path(processes.__file__).read_text(encoding="utf-8") + _TERMINATE


def _line(key: asyncssh.SSHKey) -> str:
    return key.export_public_key().decode().strip()


def _same(key: asyncssh.SSHKey, fingerprint: str) -> bool:
    return hmac.compare_digest(key.get_fingerprint().rstrip("="), fingerprint.rstrip("="))


def _printable(line: bytes) -> str:
    """A model name from the host, which is not trusted: only printable characters, at most 64."""
    return "".join(char for char in line.decode("ascii", "ignore") if char.isprintable()).strip()[:64]
