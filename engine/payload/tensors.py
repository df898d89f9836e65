"""numpy tensors as safetensors bytes, and their digest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from engine.measure.digest import tensor_digest

_DTYPES: Final = {"float32": "F32", "int32": "I32", "int64": "I64"}


def tensor_bytes(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """A safetensors file without metadata; equal tensors give equal bytes."""
    data: bytes = save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    return data


def array_digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """`tensor_digest` of float32, int32 and int64 arrays."""
    return tensor_digest(
        (
            name,
            _DTYPES[array.dtype.name],
            array.shape,
            np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes(),
        )
        for name, array in tensors.items()
    )
