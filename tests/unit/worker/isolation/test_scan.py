from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import RunError
from engine.worker.isolation import memfd, patterns, procfs, scan
from engine.worker.isolation.patterns import Item
from engine.worker.isolation.scan import WINDOW_BYTES, PatternStore, Scan, Search, Target


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311


def store_of(*items: tuple[str, bytes]) -> PatternStore:
    laid = bytearray(64 * 1024)
    patterns.write(memoryview(laid), ((name, memoryview(data)) for name, data in items))
    store = PatternStore()
    store.add(memoryview(laid))
    return store


def searched(store: PatternStore, data: bytes, pieces: int = WINDOW_BYTES) -> dict[str, int]:
    """What a search counts in `data`, fed in pieces."""
    search = Search(store)
    total: dict[str, int] = {}
    at = 0
    while at < len(data):
        space = search.space(min(pieces, len(data) - at))
        space[:] = data[at : at + len(space)]
        at += len(space)
        for name, count in search.feed(len(space)).items():
            total[name] = total.get(name, 0) + count
    return total


KEY = noise(1, 32)
ROW = b"".join(number.to_bytes(8, "little") for number in (901, 17, 4021, 5, 88, 3999))


@pytest.mark.parametrize("at", [0, 1, WINDOW_BYTES - 1, WINDOW_BYTES - 16, WINDOW_BYTES, WINDOW_BYTES + 4080])
@pytest.mark.parametrize("around", ["zeros", "noise"])
def test_a_pattern_is_found_once_at_any_offset(at: int, around: str) -> None:
    size = 2 * WINDOW_BYTES
    data = bytearray(bytes(size) if around == "zeros" else noise(2, size))
    data[at : at + 32] = KEY
    assert searched(store_of(("key", KEY)), bytes(data)) == {"key": 1}


@pytest.mark.parametrize(("before", "after"), [(24, 0), (0, 24), (24, 24)])
@pytest.mark.parametrize("pages", [1, 256])
def test_a_pattern_whose_zeros_are_in_a_page_of_zeros_is_found(before: int, after: int, pages: int) -> None:
    pattern = bytes(before) + KEY + bytes(after)
    for at in (pages * 4096 - before, (pages + 1) * 4096 - before - len(KEY)):
        data = bytearray(2 * WINDOW_BYTES)
        data[at : at + len(pattern)] = pattern
        assert searched(store_of(("key", pattern)), bytes(data)) == {"key": 1}


def test_a_search_counts_like_a_plain_count_in_any_pieces() -> None:
    chooser = random.Random(3)  # noqa: S311
    data = bytearray(256 * 1024)
    for start in range(0, len(data), 8192):
        if chooser.random() < 0.5:
            data[start : start + 4096] = noise(start, 4096)
    for _ in range(200):
        at = chooser.randrange(len(data) - 64)
        data[at : at + 48] = chooser.choice((KEY + bytes(16), ROW, KEY[:16] + ROW[:32]))
    store = store_of(("key", KEY), ("half", KEY[:16]), ("row", ROW))
    plain = bytes(data)
    expected = {"key": plain.count(KEY), "half": plain.count(KEY[:16]), "row": plain.count(ROW)}
    assert min(expected.values()) > 10
    for pieces in (WINDOW_BYTES, 50_000, 4096, 33):
        assert searched(store, plain, pieces) == expected


def test_bytes_that_are_not_contiguous_make_no_hit() -> None:
    search = Search(store_of(("key", KEY)))
    for part in (KEY[:16], KEY[16:]):
        search.space(16)[:] = part
        assert not search.feed(16)
        search.restart()


def test_the_window_and_the_store_are_zero_after_their_wipe() -> None:
    store = store_of(("key", KEY))
    search = Search(store)
    search.space(32)[:] = KEY
    search.feed(32)
    search.wipe()
    assert store.wipe() == 1
    assert KEY not in bytes(search._window)
    assert store.items == []


def test_what_is_handed_over_and_stored_is_no_pattern_and_no_half_of_one() -> None:
    laid = bytearray(4096)
    patterns.write(memoryview(laid), patterns.key_items("content_key", memoryview(KEY)))
    store = PatternStore()
    store.add(memoryview(laid))
    held = b"".join(bytes(buffer) for buffer in (laid, *store._buffers))
    longest = max(size for size in range(17) for at in range(33 - size) if KEY[at : at + size] in held)
    assert longest <= patterns.KEY_ANCHOR + 1  # a byte more may agree by chance
    assert searched(store, bytes(100) + KEY + bytes(100)) == {"content_key": 1, "content_key_half": 2}


def test_no_two_hand_overs_have_the_same_fingerprint_of_a_pattern() -> None:
    first, second = bytearray(4096), bytearray(4096)
    for laid in (first, second):
        patterns.write(memoryview(laid), [("content_key", memoryview(KEY))])
    digests = [bytes(next(patterns.read(memoryview(laid))).digest) for laid in (first, second)]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("weak", [b"short", bytes(64), b"ab" * 20, noise(4, 5000)])
def test_a_pattern_too_short_long_or_uniform_is_refused(weak: bytes) -> None:
    items: list[Item] = [("key", memoryview(weak))]
    with pytest.raises(RunError) as caught:
        patterns.write(memoryview(bytearray(8192)), items)
    assert caught.value.code == "pattern_weak"


def test_patterns_that_do_not_fit_or_have_no_proper_class_are_refused() -> None:
    for size, name, code in ((40, "key", "pattern_overflow"), (4096, "Key!", "pattern_invalid")):
        with pytest.raises(RunError) as caught:
            patterns.write(memoryview(bytearray(size)), [(name, memoryview(KEY))])
        assert caught.value.code == code


def test_a_damaged_pattern_map_is_refused_and_nothing_of_it_is_kept() -> None:
    laid = bytearray(4096)
    patterns.write(memoryview(laid), patterns.key_items("key", memoryview(KEY)))
    store = PatternStore()
    for damage in ({0: 0}, {5: 9}, {39: 0xFF, 40: 0xFF}, {42: 0xFF}, {43: 2}, {76: 0x20}):
        changed = bytearray(laid)
        for at, value in damage.items():
            changed[at] = value
        with pytest.raises(RunError) as caught:
            store.add(memoryview(changed))
        assert caught.value.code in {"pattern_invalid", "pattern_weak"}
    assert store.items == []
    assert store.add(memoryview(laid)) == {"key": 1, "key_half": 2}


@pytest.fixture
def me() -> Iterator[Target]:
    target = Target("me", *procfs.self_memory())
    yield target
    target.close()


def test_own_memory_is_read_whole_or_counted_by_class(me: Target) -> None:
    report = Scan(store_of(("key", KEY))).run([me])["me"]
    assert report["state"] == "read"
    assert report["unread_other"] == []
    assert report["bytes_read"] > 4 << 20
    assert set(report["skipped"]) <= {
        "clean_file",
        "vvar",
        "vvar_vclock",
        "vsyscall",
        "guard",
        "device",
        "memfd_secret",
    }
    assert report["skipped"]["clean_file"]["bytes"] > 1 << 20
    assert report["hits"]["key"] >= 1


def test_an_unreadable_area_is_listed_as_unread(me: Target, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 8192, mmap.MAP_PRIVATE)
        mapping[:1] = b"x"
        file.truncate(4096)
    report = Scan(store_of(("key", KEY))).run([me])["me"]
    mapping.close()
    assert report["unread_other"] == [{"why": "unreadable", "kind": "file", "permissions": "rw-p", "bytes": 4096}]


def test_a_memfd_is_read_by_descriptor_though_nobody_maps_it_and_not_twice_when_somebody_does(
    me: Target,
) -> None:
    secret = noise(5, 32)
    store = store_of(("key", secret))
    fd = memfd.create("payload", 3 * WINDOW_BYTES)
    os.pwrite(fd, secret, WINDOW_BYTES - 10)
    del secret
    held = Target("held", memfds=[fd])
    report = Scan(store).run([held])["held"]
    assert (report["hits"], report["where"], report["descriptors_read"]) == ({"key": 1}, {"descriptor": 1}, 1)
    mapping = memfd.map_readonly(fd)
    together = Scan(store).run([me, held])
    assert together["me"]["skipped"][scan.DESCRIPTOR] == {"regions": 1, "bytes": 3 * WINDOW_BYTES}
    assert together["held"]["hits"] == {"key": 1}
    assert Scan(store).run([me])["me"]["where"]["memfd"] == 1
    mapping.close()
    held.close()
