"""The errors of a link: those of asyncssh and the system, translated to `RemoteError` with a stable code."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import asyncssh

from engine.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterator

LINK_CODES: Final = frozenset({"connect_failed", "link_lost"})
"""Codes after which another attempt on a new connection may succeed."""

LONGEST_REASON: Final = 200
_SFTP_LOST: Final = (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)
_SFTP_FULL: Final = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)


def is_link_failure(error: BaseException) -> bool:
    """True when the connection itself failed, not the operation over it."""
    return isinstance(error, RemoteError) and error.code in LINK_CODES


def link_lost(doing: str) -> RemoteError:
    """The error for a connection that ended while `doing`."""
    return RemoteError(
        f"The SSH connection was lost while {doing}.",
        "Connect again; the work on the allocation continues in the meantime.",
        code="link_lost",
    )


def disk_full(path: str, needed: int, free: int | None) -> RemoteError:
    """The error for a file of which `needed` more bytes do not fit on the allocation's disk."""
    space = "no space" if free is None else f"{free} bytes"
    return RemoteError(
        f"The allocation's disk has {space} left, and {path} needs {needed} more bytes.",
        "Choose a larger disk or a smaller model.",
        code="remote_disk_full",
    )


def noexec(folder: str) -> RemoteError:
    """The error for a disk from which no program and no library can be loaded."""
    return RemoteError(
        f"{folder} is on a disk that is mounted noexec: no library in an environment there could be loaded.",
        "Set `root` in config.toml to a folder on another disk, or mount it without noexec.",
        code="environment_noexec",
    )


def not_a_file(path: str) -> RemoteError:
    """The error for a path that is a link, a folder or a device where a file is expected."""
    return RemoteError(f"{path} on the allocation is not a regular file.", code="remote_not_a_file")


def quoted(text: str | bytes, most: int = LONGEST_REASON) -> str:
    """A server's text, which is not trusted, for a sentence: only printable characters, at most `most` of them."""
    if isinstance(text, bytes):
        text = text[: 4 * most].decode("utf-8", "replace")
    clean = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * most]).split())
    return clean if len(clean) <= most else f"{clean[: most - 3]}..."


@contextmanager
def translated(doing: str, path: str = "") -> Iterator[None]:
    """Turn the errors of one operation into `RemoteError`.

    Codes: `link_lost`, `channel_refused`, `remote_missing`, `remote_denied`, `remote_disk_full`,
    `remote_failed`.
    """
    what = f"{doing} {path}".rstrip()
    try:
        yield
    except RemoteError:
        raise
    except _SFTP_LOST as error:
        raise link_lost(what) from error
    except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath) as error:
        raise RemoteError(f"{path} does not exist on the allocation.", code="remote_missing") from error
    except asyncssh.SFTPPermissionDenied as error:
        raise RemoteError(f"The allocation refused {what}.", code="remote_denied") from error
    except _SFTP_FULL as error:
        raise disk_full(path, 0, None) from error
    except asyncssh.SFTPError as error:
        raise RemoteError(f"The allocation failed at {what}: {quoted(error.reason)}.", code="remote_failed") from error
    except asyncssh.ChannelOpenError as error:
        if error.code == asyncssh.OPEN_CONNECT_FAILED:
            raise link_lost(what) from error
        raise RemoteError(
            f"The SSH server refused {what}.", "Configure it to allow commands and SFTP.", code="channel_refused"
        ) from error
    except (asyncssh.Error, ConnectionError, EOFError) as error:
        raise link_lost(what) from error
