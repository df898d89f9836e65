"""From a data file and an encoder to token ids: read once, encoded on all cores, cached by digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Final

import msgspec

from engine.payload.chat.encoder import EncoderSpec
from engine.payload.chat.ragged import Ragged
from engine.payload.data.faults import refusal
from engine.payload.data.read import check_data, no_samples, with_format
from engine.payload.data.records import Record
from engine.payload.data.samples import Fault
from engine.payload.data.sources import OpenedData, open_data
from engine.payload.prepare.cache import Facts, TokenCache
from engine.payload.prepare.collect import collected
from engine.payload.prepare.encoding import Setup, encoder_digest, encoding
from engine.payload.prepare.pool import sensible_processes

PIECE_BYTES: Final = 512 * 1024
PIECE_RECORDS: Final = 2048
CHECKED_FIRST_BYTES: Final = 8 * 1024 * 1024
SMALL_PIECES: Final = 6
"""Data of fewer pieces is encoded in this process: starting others would take longer than they save."""

Progress = Callable[[int, int], None]
Read = Record | Fault


class Prepared(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The token ids of a data file, whole and in its order, and what is known about it. `cached`: from the cache."""

    samples: Ragged
    facts: Facts
    cached: bool = False


def prepared(
    path: Path,
    spec: EncoderSpec,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    processes: int | None = None,
    is_checked: bool = False,
) -> Prepared:
    """The token ids of the file or folder at `path`, which every record of it has.

    `cache` is a folder for token ids (`TokenCache`); `progress` is called with bytes done and in total. `processes`
    (default: by cores and memory) changes nothing in the result. Large data is checked whole before it is encoded, so
    that a bad record is refused within seconds; not if `is_checked`. Raises `DataError`: as `open_data`, as
    `ChatEncoder`, `data_empty` without records, as `refusal` for bad records, of which all are counted; and as
    `collected`.
    """
    with closing(open_data(path)) as opened:
        kept = None if cache is None else TokenCache(cache)
        key = f"{encoder_digest(spec)} {opened.format_hint}"
        found = None if kept is None else kept.load(opened.digest_ahead(), key)
        if found is not None:
            return Prepared(samples=found[0], facts=found[1], cached=True)
        if opened.size > CHECKED_FIRST_BYTES and not is_checked:
            check_data(path)
        made = _encoded(path, opened, spec, progress, processes)
    if kept is not None:
        kept.keep(key, made.samples, made.facts)
    return made


def _encoded(
    path: Path, opened: OpenedData, spec: EncoderSpec, progress: Progress | None, processes: int | None
) -> Prepared:
    form, records = with_format(iter(opened))
    ends: list[int] = []
    done = 0

    def pieces() -> Iterator[list[Read]]:
        for piece in _pieces(records):
            ends.append(opened.read)
            yield piece

    def advance(number: int) -> None:
        nonlocal done
        done += ends[number] - (ends[number - 1] if number else 0)
        if progress is not None:
            progress(done, opened.size)

    rest = pieces()
    first = list(islice(rest, SMALL_PIECES))
    count = 1 if len(first) < SMALL_PIECES else processes or sensible_processes()
    part = collected(chain(first, rest), encoding, Setup(spec, form), processes=count, done=advance)
    if part.bad:
        raise refusal(part.faults, part.bad, form)
    if form is None:
        raise no_samples(path)
    ignored = sorted(part.ignored, key=lambda key: (-part.ignored[key], key))
    facts = Facts(digest=opened.digest, size=opened.size, format=form.title, ignored=tuple(ignored))
    return Prepared(samples=part.samples, facts=facts)


def _pieces(records: Iterable[Read]) -> Iterator[list[Read]]:
    """The records in lists of about `PIECE_BYTES`."""
    piece: list[Read] = []
    size = 0
    for record in records:
        piece.append(record)
        size += len(record.raw) if isinstance(record, Record) else 0
        if size >= PIECE_BYTES or len(piece) == PIECE_RECORDS:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
