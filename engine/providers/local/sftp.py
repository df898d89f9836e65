"""The SFTP server of a local allocation: files and folders under one root, links not made or followed."""

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
    """Absolute paths as the allocation's commands see them; whatever lies outside `root` is denied."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], root: str) -> None:
        super().__init__(channel)
        self._root = os.fsencode(os.path.realpath(root))

    def map_path(self, path: bytes) -> bytes:
        """The local path, its folder resolved; raises `SFTPPermissionDenied` outside the root."""
        whole = posixpath.join(self._root, path)
        folder, name = posixpath.split(posixpath.normpath(whole))
        place = posixpath.join(os.path.realpath(folder), name)
        if place != self._root and not place.startswith(self._root + b"/"):
            raise asyncssh.SFTPPermissionDenied("outside the allocation's root")
        return place

    def _plain(self, path: bytes) -> bytes:
        place = self.map_path(path)
        if Path(os.fsdecode(place)).is_symlink():
            raise asyncssh.SFTPPermissionDenied("links are not followed")
        return path

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        """Open a file that is no link."""
        return super().open(self._plain(path), pflags, attrs)

    def open56(self, path: bytes, desired_access: int, flags: int, attrs: asyncssh.SFTPAttrs) -> object:
        """Open a file that is no link (protocol versions 5 and 6)."""
        return super().open56(self._plain(path), desired_access, flags, attrs)

    def stat(self, path: bytes) -> os.stat_result:
        """The attributes of the path itself."""
        return os.lstat(self.map_path(path))

    def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        """Change the attributes of what is no link."""
        super().setstat(self._plain(path), attrs)

    def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        """List a folder that is no link."""
        return super().scandir(self._plain(path))

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        """Write all of `data`: what a full disk leaves out is an error here and never a short write."""
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
