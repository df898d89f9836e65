"""Starting SFTP on a session, and what it means when that fails while the connection lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncssh

from engine.errors import RemoteError
from engine.remote.failures import quoted, translated

if TYPE_CHECKING:
    from engine.remote.connections import Connections

_HINT: Final = (
    "Add `Subsystem sftp internal-sftp` to its sshd_config and reload sshd; if the line is there, check that its "
    "program exists."
)


async def start_sftp(connections: Connections) -> asyncssh.SFTPClient:
    """An SFTP client; raises `RemoteError`: `sftp_unavailable`, `login_output`, and the link's codes."""
    with translated("starting SFTP"):
        try:
            _, client = await connections.open(lambda one: one.start_sftp_client())
        except asyncssh.SFTPBadMessage as error:
            raise RemoteError(
                "The SSH server answers SFTP with text that is not SFTP: a start file of the login's shell prints "
                f"something, or another command is forced ({quoted(error.reason, 60)}).",
                "Let ~/.bashrc print nothing when the shell is not interactive (`case $- in *i*) ;; *) return;; esac` "
                'at its top), and remove command="..." from this key\'s line in authorized_keys.',
                code="login_output",
            ) from error
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            if connections.first.is_closed():
                raise
            raise _unavailable("starts SFTP, which ends at once") from error
        except asyncssh.ChannelOpenError as error:
            if error.code == asyncssh.OPEN_CONNECT_FAILED or connections.first.is_closed():
                raise
            raise _unavailable("does not offer SFTP") from error
    return client


def _unavailable(what: str) -> RemoteError:
    return RemoteError(f"The SSH server {what}.", _HINT, code="sftp_unavailable")
