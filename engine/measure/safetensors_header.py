"""The safetensors layout, read from and written to raw buffers, so that no plaintext passes through the heap."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from engine.errors import SealingError
from engine.wire import parse

MAX_HEADER: Final = 64 * 1024 * 1024
MAX_SIDE: Final = 2**63
MAX_SIDES: Final = 8  # more than any adapter or model has; a header with very many would take long to multiply
MAX_NAME: Final = 512
ITEM_BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class TensorSpec(msgspec.Struct, frozen=True):
    """One tensor and its position: `start` and `end` are byte offsets into the whole buffer."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(buffer: memoryview) -> dict[str, TensorSpec]:
    """The tensors of a safetensors buffer; raises `SealingError` (`tensors_invalid`) for an invalid shape or offset."""
    if len(buffer) < 8:
        raise _invalid("it is shorter than its header")
    (length,) = struct.unpack("<Q", bytes(buffer[:8]))
    if length > MAX_HEADER or 8 + length > len(buffer):
        raise _invalid("its header is longer than the file or the limit")
    raw = parse(bytes(buffer[8 : 8 + length]))
    base = 8 + length
    tensors: dict[str, TensorSpec] = {}
    try:
        for name, entry in raw.items():
            if name == "__metadata__":
                continue
            dtype, shape = str(entry["dtype"]), tuple(int(side) for side in entry["shape"][: MAX_SIDES + 1])
            start, end = (int(offset) for offset in entry["data_offsets"])
            if len(name) > MAX_NAME:
                raise _invalid("a tensor's name is longer than the limit")
            if len(shape) > MAX_SIDES or not all(0 <= side < MAX_SIDE for side in shape):
                raise _invalid(f"{name!r} has an impossible shape")
            if dtype not in ITEM_BYTES or end - start != math.prod(shape) * ITEM_BYTES[dtype]:
                raise _invalid(f"the size of {name!r} does not match its shape")
            if not 0 <= start <= end <= len(buffer) - base:
                raise _invalid(f"{name!r} extends beyond the file")
            tensors[name] = TensorSpec(dtype, shape, base + start, base + end)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _invalid("its header is malformed") from error
    return tensors


def _invalid(why: str) -> SealingError:
    return SealingError(f"A tensor file is not valid: {why}.", "Create the package again.", code="tensors_invalid")


def plan_layout(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: str
) -> tuple[bytes, dict[str, TensorSpec], int]:
    """Header bytes, positions and total size for tensors given as name -> (dtype, shape), in name order.

    `metadata` becomes the one metadata key, `glasshouse`: with more than one, other writers would not keep their order.
    """
    header: dict[str, object] = {"__metadata__": {"glasshouse": metadata}}
    offset = 0
    spans: dict[str, tuple[int, int]] = {}
    for name in sorted(tensors):
        dtype, shape = tensors[name]
        size = math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        spans[name] = (offset, offset + size)
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    positions = {
        name: TensorSpec(tensors[name][0], tensors[name][1], base + start, base + end)
        for name, (start, end) in spans.items()
    }
    return struct.pack("<Q", len(text)) + text, positions, base + offset
