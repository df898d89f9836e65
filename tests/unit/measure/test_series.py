from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import WireError
from engine.measure.series import pack_series, unpack_series


def packed(losses: list[float], nanos: list[int]) -> bytes:
    return pack_series(np.array(losses, np.float32), np.array(nanos, np.uint64))


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)), max_size=50))
def test_the_round_trip_keeps_every_bit(steps: list[tuple[int, int]]) -> None:
    losses = np.array([loss for loss, _ in steps], np.uint32).view(np.float32)
    nanos = np.array([nano for _, nano in steps], np.uint64)
    unpacked = unpack_series(pack_series(losses, nanos))
    assert unpacked[0].tobytes() == losses.tobytes()
    assert unpacked[1].tobytes() == nanos.tobytes()
    assert (unpacked[0].dtype, unpacked[1].dtype) == (np.dtype("<f4"), np.dtype("<u8"))


def test_36000_noisy_steps_take_less_than_half_a_megabyte() -> None:
    rng = np.random.default_rng(1)
    steps = 36_000
    drift = np.repeat(rng.normal(1.0, 0.05, steps // 100), 100)
    losses = (6.9 * np.exp(-np.arange(steps) / 9000) + rng.gamma(4, 0.2, steps)).astype(np.float32)
    nanos = (9e6 * drift * rng.lognormal(0, 0.1, steps)).astype(np.uint64)
    assert len(pack_series(losses, nanos)) < 500_000


def test_series_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        packed([1.0], [1, 2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: b"",
        lambda blob: blob[:10],
        lambda blob: b"NOPE" + blob[4:],
        lambda blob: blob[:-3],
        lambda blob: blob + b"x",
        lambda blob: blob[:4] + struct.pack("<Q", 4) + blob[12:],
        lambda blob: blob[:4] + struct.pack("<Q", 2) + blob[12:],
        lambda blob: blob[:4] + struct.pack("<Q", 2**60) + blob[12:],
        lambda blob: blob[:12] + struct.pack("<Q", 2**60) + blob[20:],
        lambda blob: blob[:24] + b"\xff\xff" + blob[26:],
    ],
    ids=[
        "empty",
        "cut header",
        "magic",
        "cut",
        "tail",
        "more steps",
        "fewer steps",
        "huge",
        "huge stream",
        "bytes",
    ],
)
def test_a_damaged_blob_is_refused(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(WireError) as caught:
        unpack_series(damage(packed([1.0, 2.0, 3.0], [1, 2, 3])))
    assert caught.value.code == "series_invalid"


def test_a_stream_that_would_inflate_beyond_its_steps_is_stopped() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    blob = struct.pack("<4sQQ", b"GHS1", 2, len(bomb)) + bomb + zlib.compress(bytes(16))
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            unpack_series(blob)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_more_steps_than_the_caller_allows_are_refused() -> None:
    with pytest.raises(WireError):
        unpack_series(packed([1.0, 2.0], [1, 2]), max_steps=1)
