from __future__ import annotations

import mmap
import os
from pathlib import Path

from engine.worker.isolation import memfd, smaps
from engine.worker.isolation.smaps import Area


def entry(head: str, flags: str = "rd mr mw me", /, **counts: int) -> str:
    """One area as the kernel prints it; counts are in KiB."""
    lines = [head, "Size:                  4 kB"]
    lines += [f"{name}:{count:>18} kB" for name, count in ({"Rss": 4, "Anonymous": 0} | counts).items()]
    return "\n".join([*lines, f"VmFlags: {flags} ", ""])


def only(text: str) -> Area:
    (area,) = smaps.parse(text)
    return area


LIBRARY = "7f0000000000-7f0000001000 r-xp 00001000 fd:00 1234   /usr/lib/my lib: the 2nd.so"


def test_an_area_is_read_with_its_path_counts_and_flags() -> None:
    area = only(entry(LIBRARY, "rd ex dd", Private_Dirty=8))
    assert (area.start, area.end, area.size) == (0x7F0000000000, 0x7F0000001000, 4096)
    assert area.name == "/usr/lib/my lib: the 2nd.so"
    assert (area.permissions, area.inode, area.device) == ("r-xp", 1234, os.makedev(0xFD, 0))
    assert area.counts["Private_Dirty"] == 8
    assert area.flags == {"rd", "ex", "dd"}


def test_a_file_map_is_left_out_only_while_it_is_clean() -> None:
    assert only(entry(LIBRARY)).skip_class == smaps.CLEAN_FILE
    for changed in ("Anonymous", "Private_Dirty", "Shared_Dirty", "Swap"):
        assert only(entry(LIBRARY, **{changed: 4})).skip_class is None


def test_memory_that_only_looks_like_a_file_is_read() -> None:
    names = ("/memfd:payload", "/dev/shm/x", "/dev/zero (deleted)", "/SYSV0", "/x (deleted)")  # noqa: S108
    for name in names:
        assert only(entry(f"7f0000000000-7f0000001000 rw-s 00000000 00:01 77 {name}")).skip_class is None


def test_kernel_and_device_pages_have_their_own_classes() -> None:
    for name, expected in (("[vvar]", "vvar"), ("[vvar_vclock]", "vvar_vclock"), ("[vsyscall]", "vsyscall")):
        assert only(entry(f"7f0000000000-7f0000001000 r--p 00000000 00:00 0 {name}")).skip_class == expected
    for flags in ("rd wr io", "rd wr pf"):
        device = entry("7f0000000000-7f0000001000 rw-s 00000000 00:05 9 /dev/nvidia0", flags)
        assert only(device).skip_class == smaps.DEVICE


def test_a_device_file_is_left_out_for_its_flags_and_never_for_its_name() -> None:
    plain = only(entry("7f0000000000-7f0000001000 rw-s 00000000 00:05 9 /dev/leak", Shared_Dirty=4))
    assert plain.skip_class is None
    assert plain.unreadable_class == smaps.DEVICE
    assert only(entry("7f0000000000-7f0000001000 rw-p 00000000 00:00 0 ")).unreadable_class is None


def test_a_guard_is_unreadable_and_empty() -> None:
    head = "7f0000000000-7f0000001000 ---p 00000000 00:00 0 "
    assert only(entry(head, Rss=0)).skip_class == smaps.GUARD
    assert only(entry(head, Rss=4)).skip_class is None
    assert only(entry(head, Rss=0, Swap=4)).skip_class is None


def test_kinds_hold_no_path() -> None:
    kinds = {
        "[heap]": "heap",
        "[stack]": "stack",
        "[anon: libc malloc]": "anonymous",
        "": "anonymous",
        "/memfd:payload (deleted)": "memfd",
        "/home/someone/lib.so": "file",
    }
    for name, kind in kinds.items():
        assert only(entry(f"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 {name}")).kind == kind


def test_the_areas_of_this_process_are_classified(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    fd = memfd.create("own", 4096)
    with path.open("r+b") as file:
        clean = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
        dirty = mmap.mmap(file.fileno(), 8192, mmap.MAP_PRIVATE)
    dirty[:1] = b"x"
    memory = memfd.map_writable(fd)
    areas = smaps.own()
    found = [
        next(area for area in areas if area.start <= memfd.address_of(each) < area.end)
        for each in (clean, dirty, memory)
    ]
    assert [area.skip_class for area in found] == [smaps.CLEAN_FILE, None, None]
    assert [area.kind for area in found] == ["file", "file", "memfd"]
    assert found[2].shared_memfd
    assert not found[1].shared_memfd
    assert sum(area.kind == "stack" for area in areas) == 1
    for each in (clean, dirty, memory):
        each.close()
    os.close(fd)
