"""What /proc says about a process: who it is, how many tasks it has, what it holds, whether it is gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.system.processes import read_stat, start_ticks

_BLOCK: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that a reused pid cannot stand in for; `start` is in clock ticks since boot."""

    pid: int
    start: int


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None when there is no such process."""
    stat = read_stat(pid)
    return None if stat is None else stat.start


def identity(pid: int | None = None) -> Identity:
    """Pid and start time of `pid`, by default of this process; raises `ProcessLookupError`."""
    wanted = os.getpid() if pid is None else pid
    start = start_time(wanted)
    if start is None:
        raise ProcessLookupError(wanted)
    return Identity(wanted, start)


def gone(pid: int, start: int) -> bool:
    """Whether the process with this pid *and* start time has ended; a zombie has no memory, so it has."""
    return start_ticks(pid) != start


def self_memory() -> tuple[int, int]:
    """Descriptors of this process's own `mem` and `smaps`, opened before hardening to be handed to the
    scanner.

    They go on working after it, for later maps too; the caller closes them once they are sent.
    """
    memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return memory, os.open("/proc/self/smaps", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        os.close(memory)
        raise


def task_count(pid: int | None = None) -> int:
    """How many threads a process has; raises `OSError`."""
    return len(list(Path(f"/proc/{'self' if pid is None else pid}/task").iterdir()))


def deleted_open_files(pid: int) -> list[str] | None:
    """Deleted files that `pid` holds open, by kind: `disk` or `memfd`, with their names.

    None when its descriptors may not be listed (another user's process, or one that is not dumpable); an
    empty list for a process that is gone.
    """
    found = []
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []
    except PermissionError:
        return None
    for descriptor in descriptors:
        try:
            target = str(descriptor.readlink())
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            return None
        if target.endswith(" (deleted)"):
            name = target.removesuffix(" (deleted)")
            found.append(f"memfd:{name[7:]}" if name.startswith("/memfd:") else f"disk:{name}")
    return sorted(found)


def file_of(fd: int) -> tuple[int, int]:
    """Which file is open: device and inode."""
    seen = os.fstat(fd)
    return seen.st_dev, seen.st_ino


def own_memfds(apart: Collection[tuple[int, int]]) -> list[int]:
    """Duplicates of every memfd that this process holds open, one for each file that is not in `apart`.

    The caller closes them.
    """
    found: dict[tuple[int, int], int] = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            if str(entry.readlink()).startswith("/memfd:"):
                file = file_of(int(entry.name))
                if file not in found and file not in apart:
                    found[file] = os.dup(int(entry.name))
    return list(found.values())


def leftovers(folder: Path) -> list[str]:
    """Everything inside a scratch folder, as paths relative to it; empty also when the folder is gone."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.is_dir() else []


def clear(folder: Path) -> None:
    """Overwrite and remove everything inside a scratch folder; what resists stays, and is left to the provider."""
    for path in sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else []:
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
                continue
            if path.is_file() and not path.is_symlink():
                _overwrite(path)
            path.unlink()


def _overwrite(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        left = os.fstat(fd).st_size
        while left > 0:
            left -= os.write(fd, bytes(min(left, _BLOCK)))
        os.fsync(fd)
    finally:
        os.close(fd)


def deleted_files_held(folder: Path) -> tuple[int, int]:
    """How many deleted disk files are held open, and how many processes would not say.

    This process counts with every such file, each other one of this machine with those that lay in `folder`.
    """
    held = unseen = 0
    prefix = f"disk:{folder}/"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        pid = int(entry.name)
        found = deleted_open_files(pid)
        if found is None:
            unseen += 1
        elif pid == os.getpid():
            held += sum(name.startswith("disk:") for name in found)
        else:
            held += sum(name.startswith(prefix) for name in found)
    return held, unseen
