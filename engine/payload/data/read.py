"""A whole data file at once, for small ones; made of the same parts as the reading of large ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import DataError
from engine.payload.data.convert import convert, format_of
from engine.payload.data.faults import MAX_SHOWN, SHAPES, refusal
from engine.payload.data.formats import Format
from engine.payload.data.messages import Ignored
from engine.payload.data.records import Record
from engine.payload.data.samples import Fault, Sample
from engine.payload.data.sources import OpenedData, open_data

MAX_TRIED: Final = 1000
"""Most records in which the format is looked for."""

_encode: Final = msgspec.json.Encoder(order="sorted").encode


class DataFile(msgspec.Struct, frozen=True, kw_only=True):
    """A data file's samples, in order.

    `digest` is as `OpenedData.digest`, `format` the title of the format, `ignored` how often each key was passed over,
    `duplicates` the samples that are equal to an earlier one (they are kept).
    """

    samples: tuple[Sample, ...]
    digest: str
    format: str
    ignored: Mapping[str, int]
    duplicates: int


def fingerprint(sample: Sample) -> bytes:
    """16 bytes that two samples share only if they are equal."""
    return hashlib.blake2b(_encode(sample), digest_size=16).digest()


def with_format(records: Iterator[Record | Fault]) -> tuple[Format | None, Iterator[Record | Fault]]:
    """The format of the first record that has one, and all records again; None if none of the first 1,000 has one."""
    tried: list[Record | Fault] = []
    for record in records:
        tried.append(record)
        found = format_of(record)
        if isinstance(found, Format):
            return found, chain(tried, records)
        if len(tried) == MAX_TRIED:
            break
    return None, chain(tried, records)


def converted(
    records: Iterable[Record | Fault], form: Format | None, ignored: Ignored | None = None
) -> Iterator[Sample | Fault]:
    """Each record as `convert` returns it; without a format every one is a fault."""
    for record in records:
        if form is not None:
            yield convert(record, form, ignored)
            continue
        found = format_of(record)
        if isinstance(found, Fault):
            yield found
        else:
            yield convert(record, found, ignored)


def no_samples(path: Path) -> DataError:
    """The refusal of data without a record."""
    return DataError(f"The data file {path} contains no samples.", SHAPES, code="data_empty")


def _all_samples(path: Path, opened: OpenedData, ignored: Ignored | None = None) -> Iterator[tuple[Sample, Format]]:
    """Every sample with the data's format; what is wrong with the records is raised at the end, all of it counted."""
    form, records = with_format(iter(opened))
    faults: list[Fault] = []
    bad = 0
    for one in converted(records, form, ignored):
        if isinstance(one, Fault):
            bad += 1
            faults += [one] if len(faults) < MAX_SHOWN else []
        elif form is not None:
            yield one, form
    if faults:
        raise refusal(faults, bad, form)
    if form is None:
        raise no_samples(path)


def check_data(path: Path) -> None:
    """Check every record of a data file or folder in constant memory: some seconds for 200 MB.

    Raises `DataError` as `read_data`.
    """
    with closing(open_data(path)) as opened:
        for _ in _all_samples(path, opened):
            pass


def read_data(path: Path) -> DataFile:
    """The samples of a data file or folder, and its digest.

    Raises `DataError` with the places of the first ten bad records, and as `open_data`.
    """
    ignored = Ignored()
    with closing(open_data(path)) as opened:
        found = list(_all_samples(path, opened, ignored))
        digest = opened.digest
    samples = tuple(sample for sample, _ in found)
    return DataFile(
        samples=samples,
        digest=digest,
        format=found[0][1].title,
        ignored=dict(ignored),
        duplicates=len(samples) - len({fingerprint(sample) for sample in samples}),
    )
