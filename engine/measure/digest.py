"""`tensor_digest`: one digest over named tensors, independent of the file or library that they come from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Final

Buffer = bytes | bytearray | memoryview
NamedTensor = tuple[str, str, Sequence[int], Buffer]

DOMAIN: Final = b"glasshouse tensor digest v1\0"
ITEM_BYTES: Final = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


def _with_length(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def tensor_digest(tensors: Iterable[NamedTensor]) -> str:
    """SHA-256 in hex over a domain tag and, for each tensor, its name, dtype, shape and data.

    Tensors are ordered by their names in UTF-8; dtypes are named as in safetensors ("F32"). Name and dtype are preceded
    by their length, the shape by its rank, all as u64 little-endian. The data is contiguous, little-endian, in C order.
    Raises `ValueError` for a repeated name, an unknown dtype, and data whose size does not match dtype and shape.
    """
    ordered = sorted(((name.encode(), dtype, shape, data) for name, dtype, shape, data in tensors), key=lambda t: t[0])
    hasher = hashlib.sha256(DOMAIN)
    last: bytes | None = None
    for name, dtype, shape, data in ordered:
        if name == last:
            raise ValueError(f"the tensor {name.decode()!r} is given twice")
        last = name
        if dtype not in ITEM_BYTES:
            raise ValueError(f"the tensor {name.decode()!r} has the unknown dtype {dtype!r}")
        flat = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        if flat.nbytes != math.prod(shape) * ITEM_BYTES[dtype]:
            raise ValueError(f"the tensor {name.decode()!r} has {flat.nbytes} bytes, which do not match its shape")
        hasher.update(_with_length(name) + _with_length(dtype.encode()))
        hasher.update(len(shape).to_bytes(8, "little") + b"".join(size.to_bytes(8, "little") for size in shape))
        hasher.update(flat)
    return hasher.hexdigest()
