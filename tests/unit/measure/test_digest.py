from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from engine.measure.digest import NamedTensor, tensor_digest

A: NamedTensor = ("a", "F32", (2, 2), np.arange(4, dtype="<f4").tobytes())
B: NamedTensor = ("b", "I64", (1,), (7).to_bytes(8, "little"))


def test_the_digest_is_over_the_documented_bytes() -> None:
    def with_length(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    expected = b"glasshouse tensor digest v1\0"
    expected += with_length(b"a") + with_length(b"F32") + struct.pack("<QQQ", 2, 2, 2) + struct.pack("<4f", 0, 1, 2, 3)
    expected += with_length(b"b") + with_length(b"I64") + struct.pack("<QQ", 1, 1) + struct.pack("<q", 7)
    assert tensor_digest([A, B]) == hashlib.sha256(expected).hexdigest()


def test_the_order_given_does_not_matter() -> None:
    assert tensor_digest([A, B]) == tensor_digest(iter([B, A]))


def test_names_are_ordered_by_their_utf8_bytes() -> None:
    first, second = ("\uff5e", "U8", (1,), b"1"), ("\U0001f600", "U8", (1,), b"2")
    assert tensor_digest([first, second]) == tensor_digest([second, first])
    alone = hashlib.sha256(b"glasshouse tensor digest v1\0")
    for name, data in (("\uff5e", b"1"), ("\U0001f600", b"2")):
        raw = name.encode()
        alone.update(struct.pack("<Q", len(raw)) + raw + struct.pack("<Q", 2) + b"U8" + struct.pack("<QQ", 1, 1) + data)
    assert tensor_digest([second, first]) == alone.hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        ("c", A[1], A[2], A[3]),
        (A[0], "I32", A[2], A[3]),
        (A[0], A[1], (4,), A[3]),
        (A[0], A[1], (1, 4), A[3]),
        (A[0], A[1], A[2], np.arange(1, 5, dtype="<f4").tobytes()),
    ],
    ids=["name", "dtype", "rank", "shape", "one value"],
)
def test_any_change_changes_the_digest(other: NamedTensor) -> None:
    assert tensor_digest([A, B]) != tensor_digest([other, B])


def test_negative_zero_is_another_value() -> None:
    zero, minus = np.zeros(1, "<f4").tobytes(), np.array([-0.0], "<f4").tobytes()
    assert tensor_digest([("a", "F32", (1,), zero)]) != tensor_digest([("a", "F32", (1,), minus)])


def test_any_buffer_of_the_same_bytes_gives_the_same_digest() -> None:
    data = np.arange(4, dtype="<f4")
    views: list[Any] = [
        data.tobytes(),
        bytearray(data.tobytes()),
        data.data,
        data.reshape(2, 2).data,
    ]
    assert len({tensor_digest([("a", "F32", (2, 2), view)]) for view in views}) == 1


def test_an_empty_tensor_and_a_scalar_have_digests() -> None:
    empty = tensor_digest([("a", "F32", (0, 3), np.zeros((0, 3), "<f4").data)])
    assert empty != tensor_digest([("a", "F32", (3, 0), b"")])
    assert tensor_digest([("a", "F32", (), b"\0\0\0\0")]) != tensor_digest([("a", "F32", (1,), b"\0\0\0\0")])


def test_a_round_trip_through_safetensors_keeps_the_digest() -> None:
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.ones(2, np.float32)}

    def digest(tensors: dict[str, Any]) -> str:
        return tensor_digest((name, "F32", array.shape, array.tobytes()) for name, array in tensors.items())

    assert digest(load(save(arrays))) == digest(arrays)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ([A, A], "twice"),
        ([("a", "Q4", (1,), b"1")], "unknown dtype"),
        ([("a", "F32", (2,), b"1234")], "do not match its shape"),
        ([("a", "F32", (0,), b"1234")], "do not match its shape"),
    ],
)
def test_invalid_tensors_are_refused(tensors: list[NamedTensor], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        tensor_digest(tensors)


def test_the_module_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, engine.measure.digest; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
