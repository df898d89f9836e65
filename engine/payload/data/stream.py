"""A data file as a stream of bytes: hashed and counted as it is read, and expanded within limits if it is gzip."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from engine.errors import DataError
from engine.payload.data.records import shown_name
from engine.system.files import unbuffered

CHUNK: Final = 1024 * 1024
MAX_EXPANSION: Final = 256
"""Most bytes that a byte of gzip may become, beyond `FREE_EXPANSION`; texts become 3 to 30."""
FREE_EXPANSION: Final = 64 * 1024 * 1024
GZIP: Final = b"\x1f\x8b"


class Counted(io.RawIOBase):
    """A file of which every byte that is read is hashed (SHA-256) and counted."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self._file = file
        self._hasher = hashlib.sha256()
        self._finished = False
        self.count = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read the next bytes; 0 is the end."""
        got = self._file.readinto(buffer) or 0
        self._hasher.update(buffer[:got])
        self.count += got
        return got

    def finish(self) -> str:
        """Read what is left; the SHA-256 (hex) of the whole file. Whoever reads the file again changes nothing."""
        rest = memoryview(bytearray(CHUNK))
        while not self._finished:
            self._finished = not self.readinto(rest)
        return self._hasher.hexdigest()


class Expanded(io.RawIOBase):
    """The contents of a gzip stream. Raises `DataError` for a bomb: more than `most` bytes."""

    def __init__(self, file: io.BufferedReader, most: int, name: str) -> None:
        super().__init__()
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self._left = most
        self._name = name

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read the next bytes; 0 is the end."""
        try:
            got = self._gzip.readinto(buffer)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"The data file {self._name} is gzip that is damaged or cut.",
                "Copy or compress the file again.",
                code="data_gzip_invalid",
            ) from error
        self._left -= got
        if self._left < 0:
            raise DataError(
                f"The data file {self._name} expands to more than {MAX_EXPANSION} times its size.",
                "Expand the file yourself, look at it, and give the result.",
                code="data_gzip_bomb",
            )
        return got


@contextmanager
def raw_file(path: Path) -> Iterator[io.FileIO]:
    """A regular file that a person names, without a buffer. Raises `DataError` for what the system refuses, here or
    inside the block."""
    try:
        with unbuffered(path) as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(
            f"There is no data file {path}.", "Check the path given with --data.", code="data_missing"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """The refusal of a file that the system does not let us read."""
    return DataError(
        f"The data file {path} cannot be read: {error.strerror or type(error).__name__}.",
        "Give a readable file with --data.",
        code="data_unreadable",
    )


def contents(file: io.FileIO | Counted, size: int, path: Path) -> io.BufferedReader:
    """What a file holds, expanded if it is gzip; `file` is at its start. `size` is that of the file in bytes."""
    buffered: io.BufferedReader = io.BufferedReader(file, CHUNK)
    if buffered.peek(len(GZIP))[: len(GZIP)] != GZIP:
        return buffered
    most = FREE_EXPANSION + MAX_EXPANSION * size
    return io.BufferedReader(Expanded(buffered, most, shown_name(path.name)), CHUNK)
