"""Wiping and drawing keys."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sealing.memory import KEY_BYTES, key_at, random_key, random_keys, wipe


def test_wipe_zeroes_a_bytearray_in_place() -> None:
    buffer = bytearray(b"secret" * 10)
    alias = memoryview(buffer)
    wipe(buffer)
    assert bytes(alias) == bytes(60)


def test_wipe_zeroes_only_the_part_that_a_view_covers() -> None:
    buffer = bytearray(b"abcdefgh")
    wipe(memoryview(buffer)[2:5])
    assert buffer == b"ab\0\0\0fgh"


def test_wipe_counts_bytes_and_not_items_of_a_wide_view() -> None:
    buffer = bytearray(b"\xff" * 16)
    wipe(memoryview(buffer).cast("Q"))
    assert buffer == bytes(16)


def test_wipe_zeroes_bytes() -> None:
    secret = bytes(bytearray(b"a fresh bytes object"))
    wipe(secret)
    assert secret == bytes(20)


def test_wipe_leaves_the_shared_short_bytes_alone() -> None:
    wipe(b"")
    wipe(b"xk"[1:])
    assert b"yk"[1:][0] == ord("k")


@pytest.mark.parametrize("view", [memoryview(b"read only"), memoryview(bytearray(10))[::2]])
def test_wipe_refuses_what_it_cannot_overwrite(view: memoryview) -> None:
    with pytest.raises(ValueError, match="wiped"):
        wipe(view)


@given(st.integers(1, 64))
def test_keys_in_one_buffer_are_read_through_views(count: int) -> None:
    keys = random_keys(count)
    views = [bytes(key_at(keys, index)) for index in range(count)]
    assert b"".join(views) == keys
    assert len(set(views)) == count
    key_at(keys, count - 1)[:] = bytes(KEY_BYTES)
    assert keys[-KEY_BYTES:] == bytes(KEY_BYTES)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_key_outside_the_buffer_is_refused(index: int) -> None:
    with pytest.raises(IndexError):
        key_at(random_keys(2), index)


@pytest.mark.parametrize("size", [0, -1, 257])
def test_key_sizes_outside_the_limits_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        random_key(size)


def test_random_keys_differ_and_have_the_requested_size() -> None:
    drawn = {bytes(random_key(24)) for _ in range(50)}
    gc.collect()
    assert len(drawn) == 50
    assert {len(key) for key in drawn} == {24}
