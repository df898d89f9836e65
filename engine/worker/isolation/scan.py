"""Searching a process's memory, and the memfds it can reach, for byte patterns.

Memory is read through descriptors that the target opened and handed over. Every area is read, or counted
under the class for which it is skipped; any other unread area is listed, so that no verdict of zeroized rests on it.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from engine.errors import RunError
from engine.worker.isolation import patterns, smaps
from engine.worker.isolation._libc import libc

WINDOW_BYTES: Final = 1024 * 1024
PAGE_BYTES: Final = 4096
MAX_ROUNDS: Final = 4  # of reading areas that a target mapped while it was read
MAX_MISSED_PAGES: Final = 4096  # in a row, before the rest of an area is skipped
DESCRIPTOR: Final = "descriptor"  # class of a map whose memfd is read by descriptor in the same scan

_ZERO_BLOCK: Final = bytes(64 * 1024)
_ZERO_PAGE: Final = bytes(PAGE_BYTES)

_memmem: Final = libc.memmem
_memmem.restype = ctypes.c_void_p
_memmem.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t)


@dataclass(slots=True)
class Target:
    """A process to scan: its name, its memory and smaps descriptors, and memfds that it holds or held."""

    name: str
    memory: int | None = None
    smaps: int | None = None
    memfds: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close every descriptor, so that the scan keeps no memory alive."""
        for fd in (self.memory, self.smaps, *self.memfds):
            if fd is not None:
                os.close(fd)
        self.memory = self.smaps = None
        self.memfds = []


@dataclass(slots=True)
class Report:
    """The result of one scan of one target.

    `where` counts hits by kind of area. Zero hits prove something only if `unread_other` is empty.
    """

    state: str = "read"
    bytes_read: int = 0
    regions_read: int = 0
    descriptors_read: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    where: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[int]] = field(default_factory=dict)
    unread_other: list[dict[str, Any]] = field(default_factory=list)

    def skip(self, name: str, size: int) -> None:
        """Count an area, or a part of one, under the class for which it is not read."""
        counts = self.skipped.setdefault(name, [0, 0])
        counts[0] += 1
        counts[1] += size

    def as_dict(self, classes: Iterable[str]) -> dict[str, Any]:
        """JSON; `hits` names every class that was searched for, with 0 for no hit."""
        return {
            "state": self.state,
            "bytes_read": self.bytes_read,
            "regions_read": self.regions_read,
            "descriptors_read": self.descriptors_read,
            "hits": {name: self.hits[name] for name in sorted(set(classes))},
            "where": dict(sorted(self.where.items())),
            "skipped": {k: {"regions": n, "bytes": size} for k, (n, size) in sorted(self.skipped.items())},
            "unread_other": self.unread_other,
        }


class PatternStore:
    """The scanner's own copy of the fingerprints, in buffers that `wipe` zeroes. No pattern is in them."""

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []
        self._latest: list[patterns.Fingerprint] = []
        self.items: list[patterns.Fingerprint] = []

    def add(self, source: memoryview) -> dict[str, int]:
        """Copy the fingerprints of a map, all or none; returns how many of each class.

        Raises `RunError` (`pattern_*`).
        """
        sizes = [item.end for item in patterns.read(source)]
        if len(self.items) + len(sizes) > patterns.MAX_PATTERNS:
            raise RunError("The scanner has no room for more patterns.", code="pattern_overflow")
        self._buffers.append(bytearray(source[: max(sizes, default=0)]))
        self._latest = list(patterns.read(memoryview(self._buffers[-1]))) if sizes else []
        self.items += self._latest
        return dict(sorted(Counter(item.name for item in self._latest).items()))

    def latest(self) -> PatternStore:
        """A store of the last hand-over alone; its buffers are this one's."""
        one = PatternStore()
        one.items = one._latest = self._latest
        return one

    @property
    def classes(self) -> list[str]:
        """The class of each pattern."""
        return [item.name for item in self.items]

    def wipe(self) -> int:
        """Zero and forget every fingerprint; returns how many there were."""
        count = len(self.items)
        self.items, self._latest = [], []
        for buffer in self._buffers:
            memoryview(buffer)[:] = bytes(len(buffer))
        self._buffers = []
        return count


@dataclass(slots=True)
class _Group:
    """Patterns with the same anchor at the same place, such as a key and its first half: one search finds both."""

    address: int
    size: int
    offset: int
    members: list[patterns.Fingerprint]


class Search:
    """Counts patterns in a stream of bytes that is read through one window, including those across window borders."""

    def __init__(self, store: PatternStore) -> None:
        self._longest = max((item.size for item in store.items), default=0)
        self._groups = _by_anchor(store.items)
        self._window = bytearray(self._longest + WINDOW_BYTES)
        self._view = memoryview(self._window)
        self._address = _address(self._window)
        self._kept = 0

    def restart(self) -> None:
        """Forget the last bytes: the next ones are not contiguous with them."""
        self._kept = 0

    def space(self, size: int) -> memoryview:
        """Where the next bytes go: at most `size` of them, and at most a window."""
        return memoryview(self._window)[self._kept : self._kept + min(size, WINDOW_BYTES)]

    def feed(self, size: int) -> Counter[str]:
        """Count the patterns that end in the `size` bytes just written into `space`."""
        fresh = self._kept
        end = fresh + size
        hits: Counter[str] = Counter()
        for start, stop in self._runs(fresh, end):
            self._count(start, stop, fresh, hits)
        kept = min(end, max(0, self._longest - 1))
        view = memoryview(self._window)
        view[:kept] = view[end - kept : end]
        self._kept = kept
        return hits

    def wipe(self) -> None:
        """Zero the window, which holds a copy of what was read last."""
        memoryview(self._window)[:] = bytes(len(self._window))
        self._kept = 0

    def _runs(self, fresh: int, end: int) -> list[tuple[int, int]]:
        """Stretches that can hold a pattern: all but zero pages further than a pattern away from other
        bytes.
        """
        window = self._window
        margin = max(0, self._longest - 1)
        runs: list[tuple[int, int]] = [(0, min(end, fresh + margin))] if fresh else []
        for block in range(fresh, end, len(_ZERO_BLOCK)):
            block_end = min(block + len(_ZERO_BLOCK), end)
            if block_end - block == len(_ZERO_BLOCK) and window.startswith(_ZERO_BLOCK, block):
                continue
            for page in range(block, block_end, PAGE_BYTES):
                page_end = min(page + PAGE_BYTES, block_end)
                if page_end - page < PAGE_BYTES or not window.startswith(_ZERO_PAGE, page):
                    _join(runs, max(0, page - margin), min(end, page_end + margin))
        return runs

    def _count(self, start: int, stop: int, fresh: int, hits: Counter[str]) -> None:
        base = self._address
        for group in self._groups:
            hit = _memmem(base + start, stop - start, group.address, group.size)
            while hit:
                at = hit - base - group.offset
                for item in group.members:
                    end = at + item.size
                    if at >= 0 and fresh < end <= stop and item.matches(self._view[at:end]):
                        hits[item.name] += 1
                hit = _memmem(hit + 1, base + stop - hit - 1, group.address, group.size)


class Scan:
    """One pass over several targets with one set of patterns."""

    def __init__(self, store: PatternStore) -> None:
        self._search = Search(store)
        self._classes = store.classes

    def run(self, targets: Sequence[Target], beside: Sequence[Target] = ()) -> dict[str, dict[str, Any]]:
        """The report of each target by name; the window is zeroed afterwards. Memfds of those `beside` were read."""
        described = {_identity(fd) for target in (*targets, *beside) for fd in target.memfds}
        try:
            return {target.name: self._target(target, described).as_dict(self._classes) for target in targets}
        finally:
            self._search.wipe()

    def _target(self, target: Target, described: set[tuple[int, int]]) -> Report:
        report = Report()
        self._search.wipe()  # what was read of the last target must not be found again, in the scanner's own memory
        if target.memory is not None and target.smaps is not None:
            self._memory(target.memory, target.smaps, described, report)
        for fd in target.memfds:
            self._descriptor(fd, report)
        return report

    def _memory(self, memory: int, maps: int, described: set[tuple[int, int]], report: Report) -> None:
        """Read every area, then those mapped in the meantime, until nothing new appears."""
        areas = smaps.read(maps)
        if not areas:
            report.state = "gone"
        for area in areas:
            if (name := _skip_class(area, described)) is not None:
                report.skip(name, area.size)
        covered: list[tuple[int, int]] = []
        for _ in range(MAX_ROUNDS):
            due = [part for area in areas if _skip_class(area, described) is None for part in _uncovered(area, covered)]
            if not due:
                return
            for part in due:
                self._area(memory, part, report)
            covered = sorted([*covered, *((part.start, part.end) for part in due)])
            areas = smaps.read(maps)
        for area in areas:
            if _skip_class(area, described) is None:
                report.unread_other += [_unread("appeared", p, p.size) for p in _uncovered(area, covered)]

    def _area(self, memory: int, area: smaps.Area, report: Report) -> None:
        self._search.restart()
        at = area.start
        unread = missed = 0
        while at < area.end and missed < MAX_MISSED_PAGES:
            space = self._search.space(area.end - at)
            try:
                count = os.preadv(memory, [space], at)
            except OSError:
                count = 0
            if count > 0:
                self._record(self._search.feed(count), area.kind, report)
                report.bytes_read += count
                missed = 0
            else:
                self._search.restart()
                count = min(PAGE_BYTES, area.end - at)
                unread += count
                missed += 1
            at += count
        unread += area.end - at
        if unread < area.size:
            report.regions_read += 1
        if unread and area.unreadable_class is not None:
            report.skip(area.unreadable_class, unread)
        elif unread:
            report.unread_other.append(_unread("unreadable", area, unread))

    def _descriptor(self, fd: int, report: Report) -> None:
        self._search.restart()
        size = os.fstat(fd).st_size
        at = 0
        while at < size:
            count = os.preadv(fd, [self._search.space(size - at)], at)
            if count <= 0:
                report.unread_other.append({"why": "short", "kind": DESCRIPTOR, "bytes": size - at})
                break
            self._record(self._search.feed(count), DESCRIPTOR, report)
            report.bytes_read += count
            at += count
        report.descriptors_read += 1

    @staticmethod
    def _record(hits: Counter[str], kind: str, report: Report) -> None:
        report.hits += hits
        if hits:
            report.where[kind] += hits.total()


def _skip_class(area: smaps.Area, described: set[tuple[int, int]]) -> str | None:
    if area.shared_memfd and (area.device, area.inode) in described:
        return DESCRIPTOR
    return area.skip_class


def _uncovered(area: smaps.Area, covered: Sequence[tuple[int, int]]) -> list[smaps.Area]:
    """The parts of an area outside `covered`, which is sorted and does not overlap."""
    parts = []
    at = area.start
    for start, end in covered:
        if end <= at or start >= area.end:
            continue
        if start > at:
            parts.append(replace(area, start=at, end=start))
        at = end
    if at < area.end:
        parts.append(replace(area, start=at))
    return parts


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _unread(why: str, area: smaps.Area, size: int) -> dict[str, Any]:
    return {"why": why, "kind": area.kind, "permissions": area.permissions, "bytes": size}


def _by_anchor(items: Sequence[patterns.Fingerprint]) -> list[_Group]:
    groups: dict[tuple[int, bytes], _Group] = {}
    for item in items:
        alone = _Group(_address(item.anchor), len(item.anchor), item.offset, [])
        groups.setdefault((item.offset, bytes(item.anchor)), alone).members.append(item)
    return list(groups.values())


def _address(view: memoryview | bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def _join(runs: list[tuple[int, int]], start: int, stop: int) -> None:
    if runs and start <= runs[-1][1]:
        runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
    else:
        runs.append((start, stop))
