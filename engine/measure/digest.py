"""`tensor_digest`: one digest over named tensors, whatever file or library they come from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Final

Buffer = bytes | bytearray | memoryview
NamedTensor = tuple[str, str, Sequence[int], Buffer]

DOMAIN: Final = b"glasshouse tensor digest v1\0"
ITEM_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


def _counted(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def tensor_digest(tensors: Iterable[NamedTensor]) -> str:
    """SHA-256 in hex over a domain tag and, for each tensor in the UTF-8 order of its name: the name, the
    dtype (safetensors' word, as in "F32"), the shape, the data.

    Name and dtype follow their length, the shape its rank, all as u64 little-endian. The data is contiguous,
    little-endian, in C order. Raises `ValueError` for a repeated name, an unknown dtype, and data whose size
    does not fit dtype and shape.
    """
    ordered = sorted(((name.encode(), dtype, shape, data) for name, dtype, shape, data in tensors), key=lambda t: t[0])
    hasher = hashlib.sha256(DOMAIN)
    last: bytes | None = None
    for name, dtype, shape, data in ordered:
        if name == last:
            raise ValueError(f"the tensor {name.decode()!r} is there twice")
        last = name
        if dtype not in ITEM_BYTES:
            raise ValueError(f"the tensor {name.decode()!r} has the unknown dtype {dtype!r}")
        flat = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        if flat.nbytes != math.prod(shape) * ITEM_BYTES[dtype]:
            raise ValueError(f"the tensor {name.decode()!r} has {flat.nbytes} bytes, not those of its shape")
        hasher.update(_counted(name) + _counted(dtype.encode()))
        hasher.update(len(shape).to_bytes(8, "little") + b"".join(size.to_bytes(8, "little") for size in shape))
        hasher.update(flat)
    return hasher.hexdigest()
