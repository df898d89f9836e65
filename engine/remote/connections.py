"""The connections of one session: a single one, or a few where the server opens only so many channels on each.

sshd's MaxSessions limits the channels of a connection, to one in the strictest case. A session needs a channel for SFTP
and one for each command that is running.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import asyncssh

from engine.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

MOST: Final = 8
_CLOSED: Final = "SSH connection closed"
"""asyncssh's own reason when the connection ended, under the code that sshd uses for its limit."""


class Connections:
    """`again` opens a further connection, trusted and logged in like the first; None where that cannot be done."""

    def __init__(
        self,
        first: asyncssh.SSHClientConnection,
        again: Callable[[], Awaitable[asyncssh.SSHClientConnection]] | None = None,
    ) -> None:
        self.first = first
        self._again = again
        self._further: list[asyncssh.SSHClientConnection] = []

    async def open(
        self, opener: Callable[[asyncssh.SSHClientConnection], Awaitable[T]]
    ) -> tuple[asyncssh.SSHClientConnection, T]:
        """A channel, and the connection that it is on: the first one that the server lets have another channel.

        Raises `RemoteError` (`sessions_refused`) where not even a new connection gets one, and asyncssh's errors.
        """
        self._further = [one for one in self._further if not one.is_closed()]
        for connection in (self.first, *self._further):
            try:
                return connection, await opener(connection)
            except asyncssh.ChannelOpenError as error:
                if self._again is None or not _is_limit(error, connection):
                    raise
        if self._again is None or len(self._further) >= MOST - 1:
            raise _refused(f"on {len(self._further) + 1} connections")
        connection = await self._again()
        try:
            opened = await opener(connection)
        except asyncssh.ChannelOpenError as error:
            connection.close()
            if _is_limit(error, connection):
                raise _refused("even on a new connection") from error
            raise
        except BaseException:
            connection.close()
            raise
        self._further.append(connection)
        return connection, opened

    def all(self) -> tuple[asyncssh.SSHClientConnection, ...]:
        """Every connection, for closing."""
        return (*self._further, self.first)


def _is_limit(error: asyncssh.ChannelOpenError, connection: asyncssh.SSHClientConnection) -> bool:
    is_refusal = error.code == asyncssh.OPEN_CONNECT_FAILED and error.reason != _CLOSED
    return is_refusal and not connection.is_closed()


def _refused(where: str) -> RemoteError:
    return RemoteError(
        f"The SSH server opens no session {where}.",
        "Set MaxSessions in its sshd_config to 1 or more (10 is its default).",
        code="sessions_refused",
    )
