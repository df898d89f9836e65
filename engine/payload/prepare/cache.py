"""Token ids of data files that were prepared before, in the home: private, checked when read, bounded in size.

An entry is one line of JSON and then the arrays as they are in memory (little-endian); nothing in it is executed. It is
named by what it was made from: the bytes of the data, the encoder (tokenizer, template, settings) and `VERSION`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.payload.chat.ragged import Ragged
from engine.system.clock import unix_seconds
from engine.system.files import open_named, private_file

VERSION: Final = 1
"""Goes up whenever the same data and encoder would give other ids."""
MAX_BYTES: Final = 4 * 1024**3
_SUFFIX: Final = ".tokens"
_MAX_HEAD: Final = 256 * 1024
_STALE_SECONDS: Final = 24 * 3600


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known about a data file besides its token ids. `digest`: SHA-256 of its bytes; `size` in bytes."""

    digest: str
    size: int
    format: str
    ignored: tuple[str, ...] = ()


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: str
    checksum: str
    tokens: int
    samples: int
    facts: Facts


class TokenCache:
    """The entries in `folder`, which is made when the first one is kept. No method raises `OSError`: it may be lost.

    `most` is the size in bytes of all entries together; the least recently used ones are removed.
    """

    def __init__(self, folder: Path, *, most: int = MAX_BYTES) -> None:
        self._folder = folder
        self._most = most

    def load(self, data_digest: str, encoder_digest: str) -> tuple[Ragged, Facts] | None:
        """The entry of this data and encoder; None if there is none. A damaged one is removed."""
        path = self._path(data_digest, encoder_digest)
        try:
            with open_named(path) as file:
                found = _read(file, path.stem, os.fstat(file.fileno()).st_size)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.MsgspecError):
            found = None
        if found is None or found[1].digest != data_digest:
            with suppress(OSError):
                path.unlink()
            return None
        return found

    def keep(self, encoder_digest: str, samples: Ragged, facts: Facts) -> None:
        """Add an entry, unless it is larger than half of what all may take or cannot be written."""
        path = self._path(facts.digest, encoder_digest)
        size = sum(array.nbytes for array in _arrays(samples))
        if 2 * size > self._most or sys.byteorder != "little":
            return
        head = msgspec.json.encode(
            _Head(
                key=path.stem,
                checksum=_checksum(samples),
                tokens=len(samples.ids),
                samples=len(samples.ends),
                facts=facts,
            )
        )
        if len(head) >= _MAX_HEAD:
            return
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            self._make_room(size + len(head) + 1)
            with private_file(path, durable=False) as file:
                file.write(head + b"\n")
                for array in _arrays(samples):
                    file.write(array.data)

    def _path(self, data_digest: str, encoder_digest: str) -> Path:
        key = hashlib.sha256(f"tokens v{VERSION}\n{data_digest}\n{encoder_digest}".encode()).hexdigest()
        return self._folder / f"{key}{_SUFFIX}"

    def _make_room(self, size: int) -> None:
        """Remove the least recently used entries until `size` more bytes fit, and what a crash left half written."""
        for part in self._folder.glob(".*.part"):
            if unix_seconds() - part.stat().st_mtime > _STALE_SECONDS:
                part.unlink(missing_ok=True)
        entries = [(path, path.stat()) for path in self._folder.glob(f"*{_SUFFIX}")]
        total = sum(status.st_size for _, status in entries)
        for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime_ns):
            if total + size <= self._most:
                break
            path.unlink(missing_ok=True)
            total -= status.st_size


def _arrays(samples: Ragged) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int64]]:
    return (
        np.ascontiguousarray(samples.ids, np.int32),
        np.ascontiguousarray(samples.flags, np.uint8),
        np.ascontiguousarray(samples.ends, np.int64),
    )


def _checksum(samples: Ragged) -> str:
    hasher = hashlib.sha256()
    for array in _arrays(samples):
        hasher.update(array.data)
    return hasher.hexdigest()


def _read(file: BinaryIO, key: str, size: int) -> tuple[Ragged, Facts] | None:
    """The entry in `file`, or None if it is not whole. Its size is checked before memory is taken for it."""
    line = file.readline(_MAX_HEAD)
    head = msgspec.json.decode(line, type=_Head)
    if head.key != key or size != len(line) + 5 * head.tokens + 8 * head.samples or head.samples < 1:
        return None
    samples = Ragged(
        ids=np.fromfile(file, "<i4", head.tokens),
        flags=np.fromfile(file, "<u1", head.tokens),
        ends=np.fromfile(file, "<i8", head.samples),
    )
    is_whole = _checksum(samples) == head.checksum and samples.ends[-1] == head.tokens
    return (samples, head.facts) if is_whole and not (samples.lengths < 0).any() else None


def token_cache(home: Path) -> Path | None:
    """Where a home keeps token ids; None before there is a home."""
    return home / "cache" / "tokens" if home.is_dir() else None
