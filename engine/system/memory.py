"""How much memory processes of this machine can still use."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUPS: Final = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes, as the kernel estimates them and the container's limit allows; None if the kernel does not say.

    `root` is where the kernel's files are.
    """
    free = _available(root / _MEMINFO.relative_to("/"))
    for limit, used in _CGROUPS:
        most, now = (_number(root / Path(path).relative_to("/")) for path in (limit, used))
        if free is not None and most is not None and now is not None:
            free = min(free, max(0, most - now))
    return free


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _number(path: Path) -> int | None:
    """The number in a file; None without the file, or for "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
