"""The SFTP server of a local allocation: files and folders under one root; links are neither created nor followed."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import asyncssh

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from io import FileIO


class RootedSftp(asyncssh.SFTPServer):
    """Serves absolute paths as the allocation's commands see them; anything outside `root` is denied."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], root: str) -> None:
        super().__init__(channel)
        self._root = os.fsencode(os.path.realpath(root))

    def map_path(self, path: bytes) -> bytes:
        """The local path with its parent folder resolved; raises `SFTPPermissionDenied` outside the root."""
        whole = posixpath.join(self._root, path)
        folder, name = posixpath.split(posixpath.normpath(whole))
        resolved = posixpath.join(os.path.realpath(folder), name)
        if resolved != self._root and not resolved.startswith(self._root + b"/"):
            raise asyncssh.SFTPPermissionDenied("outside the allocation's root")
        return resolved

    def _not_a_link(self, path: bytes) -> bytes:
        """`path` itself; raises `SFTPPermissionDenied` when it is a symbolic link."""
        if Path(os.fsdecode(self.map_path(path))).is_symlink():
            raise asyncssh.SFTPPermissionDenied("links are not followed")
        return path

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        """Open a file that is not a link."""
        return super().open(self._not_a_link(path), pflags, attrs)

    def open56(self, path: bytes, desired_access: int, flags: int, attrs: asyncssh.SFTPAttrs) -> object:
        """Open a file that is not a link (protocol versions 5 and 6)."""
        return super().open56(self._not_a_link(path), desired_access, flags, attrs)

    def stat(self, path: bytes) -> os.stat_result:
        """The attributes of the path itself."""
        return os.lstat(self.map_path(path))

    def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        """Change the attributes of a file that is not a link."""
        super().setstat(self._not_a_link(path), attrs)

    def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        """List a folder that is not a link."""
        return super().scandir(self._not_a_link(path))

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        """Write all of `data`: a full disk raises an error instead of causing a silent short write."""
        descriptor = cast("FileIO", file_obj).fileno()
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], offset + written)
        return written

    def readlink(self, path: bytes) -> NoReturn:
        """Denied."""
        raise asyncssh.SFTPPermissionDenied("links are not served")

    def symlink(self, oldpath: bytes, newpath: bytes) -> NoReturn:
        """Denied."""
        raise asyncssh.SFTPPermissionDenied("links are not served")

    def link(self, oldpath: bytes, newpath: bytes) -> NoReturn:
        """Denied."""
        raise asyncssh.SFTPPermissionDenied("links are not served")
