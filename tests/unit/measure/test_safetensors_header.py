"""The safetensors layout that the worker reads and writes without the heap."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from engine.errors import SealingError, WireError
from engine.measure.safetensors_header import plan_layout, read_header


def _written(values: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> bytes:
    header, places, size = plan_layout({name: ("F32", value.shape) for name, value in values.items()}, "bound")
    buffer = bytearray(size)
    buffer[: len(header)] = header
    for name, value in values.items():
        buffer[places[name].start : places[name].end] = value.tobytes()
    return bytes(buffer)


def test_our_layout_loads_in_the_safetensors_library() -> None:
    values = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones((4,), dtype=np.float32)}
    loaded = load(_written(values))
    assert sorted(loaded) == ["a", "b"]
    assert all(np.array_equal(loaded[name], values[name]) for name in values)


def test_a_file_saved_by_the_safetensors_library_is_read() -> None:
    values = {"x": np.arange(8, dtype=np.int32), "y": np.zeros((2, 2), dtype=np.float32)}
    data = save(values)
    header = read_header(memoryview(data))
    assert header["x"].dtype == "I32"
    assert np.array_equal(np.frombuffer(data[header["x"].start : header["x"].end], np.int32), values["x"])


def test_the_layout_does_not_depend_on_the_order_of_names() -> None:
    first = plan_layout({"a": ("F32", (2,)), "b": ("F32", (3,))}, "m")
    second = plan_layout({"b": ("F32", (3,)), "a": ("F32", (2,))}, "m")
    assert first == second


def test_metadata_makes_two_artifacts_of_the_same_tensors() -> None:
    tensors = {"a": ("F32", (2,))}
    assert plan_layout(tensors, "raw")[0] != plan_layout(tensors, "protected")[0]


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[-1,-2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[0,10000000000000000000000],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[' + b"1," * 60_000 + b'2],"data_offsets":[0,8]}}',
        b'{"' + b"a" * 600 + b'":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"X","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"shape":[2]}}',
        b'{"a":7}',
    ],
)
def test_an_invalid_header_is_refused(header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header + bytes(8)
    with pytest.raises(SealingError) as caught:
        read_header(memoryview(data))
    assert caught.value.code == "tensors_invalid"


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_typed_errors(data: bytes) -> None:
    with contextlib.suppress(SealingError, WireError):
        read_header(memoryview(data))
