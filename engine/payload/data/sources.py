"""Data files and folders as records, in one pass and bounded memory, with the SHA-256 of what was read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import DataError
from engine.payload.data.lines import from_array, from_lines, from_object, from_values, too_long
from engine.payload.data.records import MAX_RECORD_BYTES, Record, shown_name
from engine.payload.data.samples import Fault
from engine.payload.data.sniff import HEAD, SUFFIXES, Container, container_of, suffix_of
from engine.payload.data.stream import GZIP, Counted, contents, raw_file, unreadable
from engine.payload.data.tables import from_csv, from_parquet, require_parquet
from engine.wire import digest_of

MAX_ENTRIES: Final = 100_000
"""Most entries of a folder of data files."""
_ABOUT: Final = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""What Hugging Face's datasets write beside the data."""
_READERS: Final[dict[Container, Callable[[io.BufferedReader, str], Iterator[Record | Fault]]]] = {
    "lines": from_lines,
    "array": from_array,
    "object": from_object,
    "values": from_values,
    "csv": from_csv,
}


class OpenedData:
    """The records of a file or folder: iterate once.

    `format_hint` says how its bytes are split ("lines", "array", "csv", "folder", ...), `size` is in bytes, `files` the
    number of files, and `skipped` that of a folder's entries that were passed over. While records are taken, `read` are
    the bytes read so far (of `size`); after the last one, `digest` is the SHA-256 in hex: of the file's bytes, or for a
    folder of the canonical JSON of an object with the digest of each file by its name.
    """

    def __init__(self, paths: Sequence[Path], *, size: int, format_hint: str, skipped: int | None) -> None:
        self.size = size
        self.format_hint = format_hint
        self.files = len(paths)
        self.skipped = skipped or 0
        self._paths = paths
        self._is_folder = skipped is not None
        self._read_before = 0
        self._current: Counted | None = None
        self._digests: dict[str, str] = {}
        self._records = self._all()

    def __iter__(self) -> Iterator[Record | Fault]:
        return self._records

    @property
    def read(self) -> int:
        """Bytes read so far."""
        return self._read_before + (self._current.count if self._current else 0)

    @property
    def digest(self) -> str:
        """The SHA-256 (hex); raises `ValueError` before the last record was taken."""
        if len(self._digests) < len(self._paths):
            raise ValueError("the data is not read to its end")
        return digest_of(self._digests) if self._is_folder else self._digests[self._paths[0].name]

    def digest_ahead(self) -> str:
        """The same as `digest`, before any record is taken: the files are read for it, but not split."""
        digests: dict[str, str] = {}
        for path in self._paths:
            with raw_file(path) as raw:
                digests[path.name] = Counted(raw).finish()
        return digest_of(digests) if self._is_folder else digests[self._paths[0].name]

    def close(self) -> None:
        """Close what is open; there are no more records then."""
        self._records.close()

    def _all(self) -> Generator[Record | Fault, None, None]:
        for path in self._paths:
            found = 0
            for record in self._of(path):
                found += 1
                yield record
            if self._is_folder and not found:
                raise DataError(
                    f"The data file {shown_name(path.name)} in the folder contains no samples.",
                    "Remove it from the folder.",
                    code="data_empty",
                )

    def _of(self, path: Path) -> Iterator[Record | Fault]:
        prefix = f"{shown_name(path.name)}, " if self._is_folder else ""
        with raw_file(path) as raw:
            before = os.fstat(raw.fileno())
            container = _container(raw, path)
            self._current = Counted(raw)
            if container == "text":
                yield _text(contents(self._current, before.st_size, path), shown_name(path.name))
            elif container == "parquet":
                self._current.finish()
                raw.seek(0)
                yield from from_parquet(io.FileIO(os.dup(raw.fileno()), "rb"), prefix)
            else:
                yield from _READERS[container](contents(self._current, before.st_size, path), prefix)
            self._digests[path.name] = self._current.finish()
            _require_same(before, os.fstat(raw.fileno()), path)
        self._read_before, self._current = self.read, None


def open_data(path: Path) -> OpenedData:
    """The data at `path`: a regular file, or a folder of them. What else there is goes through `spooled` before.

    Raises `DataError`, and `MissingExtraError` for Parquet without pyarrow; taking records raises them too.
    """
    try:
        if path.is_dir():
            return _open_folder(path)
    except OSError as error:
        raise unreadable(path, error) from error
    with raw_file(path) as raw:
        container = _container(raw, path)
        size = os.fstat(raw.fileno()).st_size
    return OpenedData([path], size=size, format_hint=container, skipped=None)


def _open_folder(folder: Path) -> OpenedData:
    with os.scandir(folder) as entries:
        names = [entry.name for entry, _ in zip(entries, range(MAX_ENTRIES + 1), strict=False)]
    if len(names) > MAX_ENTRIES:
        raise DataError(
            f"The folder {folder} has more than {MAX_ENTRIES:,} entries.",
            "Give a folder of data files, or one file.",
            code="data_unreadable",
        )
    chosen = sorted(name for name in names if _is_data(folder, name))
    rows = [name for name in chosen if SUFFIXES[suffix_of(name)] != "text"]
    chosen = rows or chosen  # beside other data a text is a README
    if not chosen:
        raise DataError(
            f"The folder {folder} has no data file.",
            f"Put files in it that end in {', '.join(SUFFIXES)}.",
            code="data_empty",
        )
    if any(not name.isprintable() for name in chosen):
        raise DataError(
            f"The folder {folder} has a data file with a name that cannot be shown.",
            "Give it a name of printable characters in UTF-8.",
            code="data_unreadable",
        )
    size = sum((folder / name).stat().st_size for name in chosen)
    paths = [folder / name for name in chosen]
    return OpenedData(paths, size=size, format_hint="folder", skipped=len(names) - len(chosen))


def _is_data(folder: Path, name: str) -> bool:
    known = suffix_of(name) in SUFFIXES and not name.startswith(".") and name not in _ABOUT
    return known and not (folder / name).is_dir()


def _container(raw: io.FileIO, path: Path) -> Container:
    """How the file is split; it stays at its start."""
    size = os.fstat(raw.fileno()).st_size
    zipped = raw.read(len(GZIP)) == GZIP
    raw.seek(0)
    head = contents(io.FileIO(os.dup(raw.fileno()), "rb"), size, path).read(HEAD)
    raw.seek(0)
    container = container_of(path.name, head)
    if container == "parquet":
        require_parquet()
        if zipped:
            raise DataError(
                f"The data file {shown_name(path.name)} is Parquet inside gzip.",
                "Expand it: Parquet is compressed already.",
                code="data_container_unknown",
            )
    return container


def _text(file: io.BufferedReader, place: str) -> Record | Fault:
    """A text file as one record."""
    raw = file.read(MAX_RECORD_BYTES + 1)
    if len(raw) > MAX_RECORD_BYTES:
        return too_long(place)
    try:
        return Record(place, msgspec.json.encode({"text": raw.decode("utf-8-sig")}))
    except UnicodeDecodeError:
        return Fault(place=place, code="data_not_utf8", what="is not UTF-8")


def _require_same(before: os.stat_result, after: os.stat_result, path: Path) -> None:
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise DataError(
            f"The data file {shown_name(path.name)} changed while it was read.",
            "Start again when nothing writes to it.",
            code="data_changed",
        )
