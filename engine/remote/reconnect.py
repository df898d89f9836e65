"""A link that outlives its connections: operations are retried on a new session until a deadline."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Self, TypeVar

from engine.errors import RemoteError
from engine.remote.endpoint import LinkLimits
from engine.remote.failures import is_link_failure, link_lost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from engine.remote.session import SshSession

T = TypeVar("T")


class Reconnecting:
    """Sessions to one allocation, one at a time.

    `opener` returns a connected session and resolves the address again at every call; errors from it other than
    `connect_failed` and `link_lost`, such as a wrong host key or an allocation that is gone, end the attempts.
    `on_link(up, reason)` is called at every loss and every connection.
    """

    def __init__(
        self,
        opener: Callable[[], Awaitable[SshSession]],
        limits: LinkLimits | None = None,
        *,
        on_link: Callable[[bool, str], None] | None = None,
        jitter: Callable[[float], float] | None = None,
    ) -> None:
        self._opener = opener
        self._limits = limits or LinkLimits()
        self._on_link = on_link
        self._jitter = jitter or (lambda most: random.uniform(0.0, most))  # noqa: S311  # spreads attempts
        self._session: SshSession | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the current session, if there is one."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(self, operation: Callable[[SshSession], Awaitable[T]]) -> T:
        """Run `operation` on a live session, from its start again after each lost link: it must be idempotent.

        Raises its errors, and the last link failure after `give_up` seconds without a link.
        """
        lost_at: float | None = None
        last: RemoteError | None = None
        attempt = 0
        while True:
            began = time.monotonic()
            session: SshSession | None = None
            try:
                session = await self._live(lost_at, last)
                return await operation(session)
            except RemoteError as error:
                if not is_link_failure(error):
                    raise
                last = error
                if session is not None:
                    await self._drop(session, error)
                now = time.monotonic()
                if lost_at is None or (session is not None and now - began > self._limits.retry_most):
                    lost_at, attempt = now, 0
                pause = self._jitter(min(self._limits.retry_most, self._limits.retry_first * 2**attempt))
                attempt += 1
                if now + pause - lost_at > self._limits.give_up:
                    raise
                await asyncio.sleep(pause)

    async def _live(self, lost_at: float | None, last: RemoteError | None) -> SshSession:
        async with self._opening:
            if self._session is None or not self._session.is_open:
                left = self._limits.give_up - (time.monotonic() - lost_at if lost_at is not None else 0.0)
                try:
                    self._session = await asyncio.wait_for(self._opener(), max(left, 0.001))
                except TimeoutError as error:
                    # The attempt that the deadline cuts off says nothing; the one before it said why.
                    raise last or link_lost("waiting for the allocation") from error
                self._notify(True, "connected")
            return self._session

    async def _drop(self, session: SshSession, error: RemoteError) -> None:
        if self._session is session:
            self._session = None
            self._notify(False, error.message)
            await session.close()

    def _notify(self, up: bool, reason: str) -> None:
        if self._on_link is not None:
            self._on_link(up, reason)
