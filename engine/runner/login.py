"""The login's home on an allocation: folders below it made absolute, and the heartbeat file in it."""

from __future__ import annotations

import posixpath
import time
from typing import Final

import msgspec

from engine.errors import RemoteError
from engine.providers.protocol import Lease
from engine.remote.reconnect import Reconnecting
from engine.remote.session import SshSession

BEAT_SECONDS: Final = 30.0
_HOME: Final = 'printf %s "$HOME"'


async def anchored(session: SshSession, lease: Lease) -> Lease:
    """The same lease with absolute paths: what was relative lies below the login's home.

    Raises `RemoteError` (`remote_home_unknown`).
    """
    if all(path is None or path.startswith("/") for path in (lease.root, lease.heartbeat)):
        return lease
    told = await session.run(["sh", "-c", _HOME])
    home = told.stdout.decode("utf-8", "replace")
    if told.exit_status != 0 or not home.startswith("/") or not home.isprintable():
        raise RemoteError(
            "The login on the allocation has no home folder.",
            "Give `root` as an absolute path.",
            code="remote_home_unknown",
        )
    heartbeat = None if lease.heartbeat is None else posixpath.join(home, lease.heartbeat)
    return msgspec.structs.replace(lease, root=posixpath.join(home, lease.root), heartbeat=heartbeat)


class Heart:
    """Touches the heartbeat file, now and then. An allocation that hears nothing for long ends itself."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._last = float("-inf")

    async def beat(self, link: Reconnecting) -> None:
        """Touch the file when that is due."""
        path = self._path
        if path is None or time.monotonic() - self._last < BEAT_SECONDS:
            return
        await link.call(lambda session: session.run(["touch", "--", path]))
        self._last = time.monotonic()
