"""Per-step losses and times: converted from progress events into compressed chunks and back, byte for byte.

A segment's chunk holds `CHUNK_STEPS` steps; a full one is byte-shuffled (all first bytes, then all second
ones) and deflated, the last, incomplete one is stored uncompressed. Losses are float32, step times uint64 nanoseconds,
both little-endian.
"""

from __future__ import annotations

import base64
import binascii
import sqlite3
import sys
import zlib
from array import array
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from engine.errors import WireError

CHUNK_STEPS: Final = 1000
LOSS_BYTES: Final = 4
NANO_BYTES: Final = 8
_KEYS: Final = {"segment", "from", "to", "losses", "nanos"}
MOST_NANOS: Final = 2**63 - 1
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Steps:
    """Measured steps of one segment from `first` on, in the encoding of progress events."""

    kind: str
    first: int
    losses: bytes
    nanos: bytes

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self.losses) // LOSS_BYTES


def unpack_losses(raw: bytes) -> array[float]:
    """Floats from float32 little-endian."""
    return _unpacked(array("f"), raw, LOSS_BYTES)


def unpack_nanos(raw: bytes) -> array[int]:
    """Integers from uint64 little-endian."""
    return _unpacked(array("Q"), raw, NANO_BYTES)


def _unpacked(into: array[Number], raw: bytes, width: int) -> array[Number]:
    into.frombytes(raw[: len(raw) // width * width])
    if sys.byteorder == "big":
        into.byteswap()
    return into


def steps_of(body: dict[str, Any]) -> Steps:
    """The steps in a progress event's body; raises `WireError` (`progress_invalid`).

    Accepts only bodies that `body_of` reproduces exactly.
    """
    if body.keys() != _KEYS or body["segment"] not in ("raw", "protected"):
        raise _invalid("has missing or unknown fields")
    first, last = body["from"], body["to"]
    if type(first) is not int or type(last) is not int or not 0 <= first <= last:
        raise _invalid("has an invalid range of steps")
    steps = Steps(body["segment"], first, _decoded(body["losses"]), _decoded(body["nanos"]))
    count = last - first
    if len(steps.losses) != count * LOSS_BYTES or len(steps.nanos) != count * NANO_BYTES:
        raise _invalid("has a series whose length differs from its range")
    return steps


def body_of(steps: Steps) -> dict[str, Any]:
    """The body of the progress event from which these steps came."""
    return {
        "segment": steps.kind,
        "from": steps.first,
        "to": steps.first + steps.count,
        "losses": base64.b64encode(steps.losses).decode(),
        "nanos": base64.b64encode(steps.nanos).decode(),
    }


def _decoded(text: object) -> bytes:
    if not isinstance(text, str):
        raise _invalid("has a series that is not text")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid("has a series that is not base64") from error
    if base64.b64encode(raw).decode() != text:
        raise _invalid("has a series that is not canonical base64")
    return raw


def _invalid(what: str) -> WireError:
    return WireError(f"A progress event from the allocation {what}.", code="progress_invalid")


def pack(raw: bytes, width: int) -> bytes:
    """Byte-shuffle items of `width` bytes and deflate them."""
    return zlib.compress(b"".join(raw[place::width] for place in range(width)), 9)


def unpack(packed: bytes, width: int) -> bytes:
    """The inverse of `pack`."""
    shuffled = zlib.decompress(packed)
    count = len(shuffled) // width
    raw = bytearray(len(shuffled))
    for place in range(width):
        raw[place::width] = shuffled[place * count : (place + 1) * count]
    return bytes(raw)


def length(connection: sqlite3.Connection, segment: int) -> int:
    """The number of steps in the series of a segment (its key)."""
    last = connection.execute(
        "SELECT chunk, count FROM series WHERE segment = ? ORDER BY chunk DESC LIMIT 1", (segment,)
    ).fetchone()
    return 0 if last is None else last["chunk"] * CHUNK_STEPS + last["count"]


def extend(connection: sqlite3.Connection, segment: int, stored: int, losses: bytes, nanos: bytes) -> None:
    """Append steps to the `stored` ones of segment `segment` (its key), inside the caller's transaction."""
    chunk, filled = divmod(stored, CHUNK_STEPS)
    if filled:
        row = connection.execute(
            "SELECT losses, nanos FROM series WHERE segment = ? AND chunk = ?", (segment, chunk)
        ).fetchone()
        losses, nanos = row["losses"] + losses, row["nanos"] + nanos
    for start in range(0, len(losses) // LOSS_BYTES, CHUNK_STEPS):
        some_losses = losses[start * LOSS_BYTES : (start + CHUNK_STEPS) * LOSS_BYTES]
        some_nanos = nanos[start * NANO_BYTES : (start + CHUNK_STEPS) * NANO_BYTES]
        count = len(some_losses) // LOSS_BYTES
        full = count == CHUNK_STEPS
        if full:
            some_losses, some_nanos = pack(some_losses, LOSS_BYTES), pack(some_nanos, NANO_BYTES)
        connection.execute(
            """INSERT INTO series (segment, chunk, count, packed, losses, nanos) VALUES (?, ?, ?, ?, ?, ?)
            ON CONFLICT (segment, chunk) DO UPDATE SET
                count = excluded.count, packed = excluded.packed,
                losses = excluded.losses, nanos = excluded.nanos""",
            (segment, chunk, count, full, some_losses, some_nanos),
        )
        chunk += 1


def read_losses(connection: sqlite3.Connection, segment: int) -> bytes:
    """Every loss of a segment, float32 little-endian."""
    rows = connection.execute("SELECT packed, losses FROM series WHERE segment = ? ORDER BY chunk", (segment,))
    return b"".join(unpack(row["losses"], LOSS_BYTES) if row["packed"] else row["losses"] for row in rows)


def read_nanos(connection: sqlite3.Connection, segment: int) -> bytes:
    """Every step time of a segment, uint64 nanoseconds little-endian."""
    rows = connection.execute("SELECT packed, nanos FROM series WHERE segment = ? ORDER BY chunk", (segment,))
    return b"".join(unpack(row["nanos"], NANO_BYTES) if row["packed"] else row["nanos"] for row in rows)
