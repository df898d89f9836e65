"""Records from tables: CSV with a header, and Parquet. A row becomes a JSON object; empty cells are left out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from engine.errors import DataError, MissingExtraError
from engine.payload.data.lines import BOM, too_long
from engine.payload.data.records import MAX_RECORD_BYTES, Record, listed
from engine.payload.data.samples import Fault
from engine.payload.data.sniff import DELIMITERS

MAX_ROW_GROUP_BYTES: Final = 4 * 1024**3
"""Most bytes of one row group of a Parquet file, expanded, by its own account."""
_MAX_COLUMNS: Final = 1000
_ROWS: Final = 64
_CELL: Final = 'Quote cells as CSV does: "..." with "" for a quote inside. JSONL is safer.'

_encode: Final = msgspec.json.Encoder().encode


def _row(place: str, cells: dict[str, Any]) -> Record | Fault:
    raw = _encode(cells)
    return too_long(place) if len(raw) > MAX_RECORD_BYTES else Record(place, raw)


def from_csv(file: io.BufferedReader, prefix: str) -> Iterator[Record | Fault]:
    """A record from each row below the header. Rows are counted from 1; the delimiter is what the header has most of.

    Raises `DataError`: `data_csv_invalid`, `data_not_utf8`, `data_line_too_long`.
    """
    physical = _csv_lines(file)
    first = next(physical, "")
    delimiter = max(DELIMITERS, key=first.count)
    rows = _rows(chain([first], physical), delimiter)
    header = next(rows, [])
    _require_header(header)
    for number, cells in enumerate(rows, 1):
        place = f"{prefix}row {number}"
        if len(cells) != len(header):
            yield Fault(
                place=place, code="data_shape_invalid", what=f"has {len(cells)} cells, and the header {len(header)}"
            )
        else:
            yield _row(place, {key: cell for key, cell in zip(header, cells, strict=True) if key and cell})


def _csv_lines(file: io.BufferedReader) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) > MAX_RECORD_BYTES:
            raise _csv_refusal(f"has a line {number} that is longer than 1 MiB", "data_line_too_long")
        try:
            yield (line.removeprefix(BOM) if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError:
            raise _csv_refusal(f"has a line {number} that is not UTF-8", "data_not_utf8") from None


def _rows(physical: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    """The rows of cells that are not blank; a quote that is left open ends at the limit of a record."""
    since = 0

    def lines() -> Iterator[str]:
        nonlocal since
        for line in physical:
            since += len(line)
            if since > 2 * MAX_RECORD_BYTES:
                raise csv.Error
            yield line

    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_RECORD_BYTES))
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error:
            raise _csv_refusal(f"is not CSV from line {start} on", "data_csv_invalid") from None
        if cells is None:
            return
        since = 0
        if cells:
            yield cells


def _require_header(header: Sequence[str]) -> None:
    if len(header) > _MAX_COLUMNS:
        raise _csv_refusal(f"has more than {_MAX_COLUMNS} columns", "data_csv_invalid")
    names = [name for name in header if name]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise _csv_refusal(f"has columns of the same name ({listed(twice)})", "data_csv_invalid")


def _csv_refusal(what: str, code: str) -> DataError:
    return DataError(
        f"The CSV file {what}.", "Save the file as UTF-8." if code == "data_not_utf8" else _CELL, code=code
    )


def require_parquet() -> None:
    """Raise `MissingExtraError` if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files need pyarrow, which is not installed.",
            "Run: pip install 'glasshouse[parquet]', or give the data as JSONL.",
        ) from error


def from_parquet(file: io.FileIO, prefix: str) -> Iterator[Record | Fault]:
    """A record from each row, in their order; rows are counted from 1.

    A struct of Arrow has every field that any row has, so a field that is null is left out, as if it were not there.
    Raises `MissingExtraError`, and `DataError` (`data_parquet_invalid`) for what pyarrow cannot read.
    """
    require_parquet()
    import pyarrow as pa

    try:
        for number, cells in enumerate(_parquet_rows(file), 1):
            yield _row(f"{prefix}row {number}", _without_nulls(cells))
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, RecursionError) as error:
        raise DataError(
            "The Parquet file is damaged, or has what cannot be read as text and numbers.",
            "Write the file again, or give the data as JSONL.",
            code="data_parquet_invalid",
        ) from error


def _parquet_rows(file: io.FileIO) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file, pre_buffer=False)
    groups = table.metadata.num_row_groups
    if any(table.metadata.row_group(group).total_byte_size > MAX_ROW_GROUP_BYTES for group in range(groups)):
        raise DataError(
            "The Parquet file has a row group of more than 4 GiB.",
            "Write it again with smaller row groups.",
            code="data_parquet_invalid",
        )
    for batch in table.iter_batches(batch_size=_ROWS, use_threads=False):
        yield from batch.to_pylist()


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value
