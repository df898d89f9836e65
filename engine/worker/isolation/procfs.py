"""A process as /proc shows it: its identity, its tasks, the files it holds, whether it is gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.system.processes import read_stat, start_ticks

_BLOCK: Final = 1024 * 1024
_FLAGS: Final = 6  # of the fields after the command's name
_KERNEL_THREAD: Final = 0x00200000  # PF_KTHREAD


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, unambiguous even if its pid is reused; `start` is in clock ticks since boot."""

    pid: int
    start: int


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None when there is no such process."""
    stat = read_stat(pid)
    return None if stat is None else stat.start


def identity(pid: int | None = None) -> Identity:
    """Pid and start time of `pid`, by default of this process; raises `ProcessLookupError`."""
    pid = os.getpid() if pid is None else pid
    start = start_time(pid)
    if start is None:
        raise ProcessLookupError(pid)
    return Identity(pid, start)


def gone(pid: int, start: int) -> bool:
    """Whether the process with this pid *and* start time has ended; a zombie has no memory left and counts as ended."""
    return start_ticks(pid) != start


def self_memory() -> tuple[int, int]:
    """Descriptors of this process's own `mem` and `smaps`, opened before hardening to be handed to the
    scanner.

    They stay usable after hardening, for later maps too; the caller closes them once they are sent.
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
    files = []
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
            files.append(f"memfd:{name[7:]}" if name.startswith("/memfd:") else f"disk:{name}")
    return sorted(files)


def file_of(fd: int) -> tuple[int, int]:
    """The open file's identity: device and inode."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def own_memfds(known: Collection[tuple[int, int]]) -> list[int]:
    """Duplicates of every memfd that this process holds open, one per file that is not in `known`.

    The caller closes them.
    """
    duplicates: dict[tuple[int, int], int] = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed by now
            if str(entry.readlink()).startswith("/memfd:"):
                file = file_of(int(entry.name))
                if file not in duplicates and file not in known:
                    duplicates[file] = os.dup(int(entry.name))
    return list(duplicates.values())


def leftovers(folder: Path) -> list[str]:
    """Everything inside a scratch folder, as paths relative to it; empty also when the folder is gone."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.is_dir() else []


def clear(folder: Path) -> None:
    """Overwrite and remove everything inside a scratch folder; whatever cannot be removed is left."""
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


def _is_kernel_thread(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(int(fields[_FLAGS]) & _KERNEL_THREAD)


def deleted_files_held(folder: Path) -> tuple[int, int]:
    """How many deleted disk files are held open, and for how many processes they cannot be listed.

    Of this process every such file counts, of each other process of this machine those that were in `folder`. Kernel
    threads hold no files, and a large machine has thousands of them.
    """
    held = unseen = 0
    prefix = f"disk:{folder}/"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        pid = int(entry.name)
        files = deleted_open_files(pid)
        if files is None:
            unseen += not _is_kernel_thread(pid)
        elif pid == os.getpid():
            held += sum(name.startswith("disk:") for name in files)
        else:
            held += sum(name.startswith(prefix) for name in files)
    return held, unseen
