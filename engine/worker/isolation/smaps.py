"""The memory map of a process as the kernel reports it, and which of its areas a scan may skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

CLEAN_FILE: Final = "clean_file"
VVAR: Final = "vvar"
VVAR_VCLOCK: Final = "vvar_vclock"
VSYSCALL: Final = "vsyscall"
GUARD: Final = "guard"
DEVICE: Final = "device"
UNREADABLE_MEMFD: Final = "memfd_secret"
SKIP_CLASSES: Final = (CLEAN_FILE, VVAR, VVAR_VCLOCK, VSYSCALL, GUARD, DEVICE, UNREADABLE_MEMFD)

_KERNEL_PAGES: Final = {"[vvar]": VVAR, "[vvar_vclock]": VVAR_VCLOCK, "[vsyscall]": VSYSCALL}
_MEMORY_FILES: Final = ("/memfd:", "/dev/shm/", "/dev/zero", "/SYSV", "/anon_hugepage")  # noqa: S108
_CHANGED: Final = ("Anonymous", "Private_Dirty", "Shared_Dirty", "Swap")
_READ_BYTES: Final = 64 * 1024
_COUNTED: Final = frozenset({"Rss", "Swap", "Anonymous", "Private_Dirty", "Shared_Dirty"})


@dataclass(slots=True)
class Area:
    """One map: addresses, permissions, what backs it, and the kernel's counts in KiB."""

    start: int
    end: int
    permissions: str
    device: int
    inode: int
    name: str
    counts: dict[str, int]
    flags: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Bytes of address space."""
        return self.end - self.start

    @property
    def anonymous_writable(self) -> bool:
        """Private memory that the process writes: heap, stack and anonymous maps."""
        return self.permissions.startswith("rw") and self.permissions.endswith("p") and self.inode == 0

    @property
    def shared_memfd(self) -> bool:
        """A shared map of a memfd: the same pages that its descriptor reads."""
        return self.name.startswith("/memfd:") and self.permissions.endswith("s")

    @property
    def kind(self) -> str:
        """What backs the area, without any path."""
        if self.name.startswith("["):
            return "anonymous" if self.name.startswith("[anon") else self.name.strip("[]")
        if self.name.startswith("/memfd:"):
            return "memfd"
        return "file" if self.name else "anonymous"

    @property
    def skip_class(self) -> str | None:
        """The class for which the area is not read at all; None when it must be read.

        A file map is clean if no page of it was written or copied; memory files never count as clean. A
        guard is unreadable to its own process and holds no page. Device maps are those that the kernel flags as such.
        """
        if self.name in _KERNEL_PAGES:
            return _KERNEL_PAGES[self.name]
        if self.permissions.startswith("---") and not self.counts["Rss"] and not self.counts["Swap"]:
            return GUARD
        if self.flags & {"io", "pf"}:
            return DEVICE
        if self.name.startswith(_MEMORY_FILES) or not self.inode or self.name.endswith(" (deleted)"):
            return None
        return None if any(self.counts[key] for key in _CHANGED) else CLEAN_FILE

    @property
    def unreadable_class(self) -> str | None:
        """The class of pages that could not be read; None if there is no legitimate reason."""
        if "gu" in self.flags:
            return GUARD
        if self.name.startswith(("/secretmem", "secretmem")):
            return UNREADABLE_MEMFD
        return DEVICE if self.name.startswith("/dev/") else None


def parse(text: str) -> Iterator[Area]:
    """The areas of an smaps text, in address order."""
    area: Area | None = None
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        if area is not None and key in _COUNTED:
            area.counts[key] = int(rest.split(None, 1)[0])
        elif key == "VmFlags":
            if area is not None:
                area.flags = frozenset(rest.split())
        elif "-" in key and line[0] in "0123456789abcdef":
            if area is not None:
                yield area
            area = _head(line)
    if area is not None:
        yield area


def _head(line: str) -> Area:
    addresses, permissions, _, device, inode, *name = line.split(None, 5)
    start, _, end = addresses.partition("-")
    major, _, minor = device.partition(":")
    counts = dict.fromkeys(_COUNTED, 0)
    number = os.makedev(int(major, 16), int(minor, 16))
    return Area(int(start, 16), int(end, 16), permissions, number, int(inode), name[0] if name else "", counts)


def read(fd: int) -> list[Area]:
    """The areas behind an open smaps descriptor, as they are now; empty when the process has ended."""
    blocks: list[bytes] = []
    offset = 0
    while True:
        try:
            block = os.pread(fd, _READ_BYTES, offset)
        except ProcessLookupError:
            return []
        if not block:
            return list(parse(b"".join(blocks).decode("utf-8", "surrogateescape")))
        blocks.append(block)
        offset += len(block)


def own() -> list[Area]:
    """The areas of this process; raises `OSError` once Landlock denies opening files."""
    fd = os.open("/proc/self/smaps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read(fd)
    finally:
        os.close(fd)
