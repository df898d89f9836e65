"""The heartbeat file on an allocation, without which the allocation terminates itself."""

from __future__ import annotations

import time
from typing import Final

from engine.remote.reconnect import Reconnecting

BEAT_SECONDS: Final = 30.0


class Heartbeat:
    """Touches the heartbeat file every `BEAT_SECONDS`. Without that the allocation terminates itself after a while."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._last = float("-inf")

    async def beat(self, link: Reconnecting) -> None:
        """Touch the file when it is due."""
        path = self._path
        if path is None or time.monotonic() - self._last < BEAT_SECONDS:
            return
        await link.call(lambda session: session.run(["touch", "--", path]))
        self._last = time.monotonic()
