from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from engine.worker.isolation import memfd, smaps


@pytest.fixture
def fd() -> Iterator[int]:
    made = memfd.create("test", 8192)
    yield made
    os.close(made)


def test_a_memfd_has_its_exact_size_and_is_not_inherited_unless_requested(fd: int) -> None:
    assert memfd.size_of(fd) == 8192
    assert not os.get_inheritable(fd)
    other = memfd.create("other", 1, inheritable=True)
    assert os.get_inheritable(other)
    os.close(other)


def test_a_sealed_payload_is_wiped_through_the_map_that_its_owner_kept(fd: int) -> None:
    kept = memfd.map_writable(fd)
    kept[:6] = b"secret"
    memfd.seal_payload(fd)
    seen = memfd.map_readonly(fd)
    assert memfd.is_sealed(fd)
    assert seen[:6] == b"secret"
    memfd.wipe_map(kept)
    assert bytes(seen) == bytes(8192)


def test_a_sealed_payload_takes_no_new_writer_and_no_other_size(fd: int) -> None:
    memfd.seal_payload(fd)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, 8192)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    for size in (0, 16384):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)


def test_sealed_code_can_never_change_again() -> None:
    code = memfd.from_bytes("code", b"print()")
    memfd.seal_code(code)
    assert memfd.is_sealed(code, memfd.CODE_SEALS)
    with pytest.raises(PermissionError):
        os.pwrite(code, b"x", 0)
    assert os.pread(code, 100, 0) == b"print()"
    os.close(code)


def test_code_is_not_sealed_while_a_writable_map_exists(fd: int) -> None:
    kept = memfd.map_writable(fd)
    with pytest.raises(OSError) as caught:
        memfd.seal_code(fd)
    assert caught.value.errno == errno.EBUSY
    kept.close()


def test_maps_are_left_out_of_core_dumps_and_found_by_address(fd: int) -> None:
    areas = {}
    for mapping in (memfd.map_writable(fd), memfd.map_readonly(fd)):
        at = memfd.address_of(mapping)
        areas[at] = next(area for area in smaps.own() if area.start <= at < area.end)
        assert areas[at].name.startswith("/memfd:test")
        assert "dd" in areas[at].flags
        mapping.close()
    assert len(areas) == 2


def test_a_map_closes_even_while_a_traceback_holds_a_view(fd: int) -> None:
    mapping = memfd.map_writable(fd)
    with memfd.opened(mapping) as view:
        kept = view[1:]
    with pytest.raises(ValueError, match="released"):
        view[0]
    assert kept[0] == 0


def test_a_memfd_is_wiped_whole_and_an_empty_one_is_left_alone() -> None:
    fd, empty = memfd.from_bytes("plain", os.urandom(5000)), memfd.create("empty", 0)
    memfd.wipe(fd)
    memfd.wipe(empty)
    assert os.pread(fd, 6000, 0) == bytes(5000)
    assert memfd.size_of(empty) == 0
    os.close(fd)
    os.close(empty)
