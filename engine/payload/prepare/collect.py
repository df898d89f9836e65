"""Pieces of a data file, encoded in any number of processes and put together in the file's order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.payload.chat.ragged import Ragged
from engine.payload.data.samples import Fault
from engine.payload.prepare.pool import pool

KEPT_FAULTS: Final = 10
MAX_TOKENS: Final = 512 * 1024 * 1024
"""Most tokens of a data file; they take 2.5 GiB of memory while they are prepared."""
_MAX_IGNORED: Final = 1000
_LEAST: Final = 4096


class Part(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What became of some records in a row. `faults` are the first ones, `bad` counts all; `ignored` counts keys."""

    samples: Ragged
    records: int
    faults: tuple[Fault, ...] = ()
    bad: int = 0
    ignored: dict[str, int] = {}


Work = Callable[[Any], Part]


def collected(
    pieces: Iterator[Any],
    prepare: Callable[[Any], Work],
    setup: Any,
    *,
    processes: int,
    done: Callable[[int], None] | None = None,
) -> Part:
    """All parts as one, the same whatever the number of processes; with one, everything happens in this process.

    Memory: 5 to 6 bytes a token and 8 a sample, and for each process one piece and its part. `done` is called with the
    number of each piece when it is encoded. Raises `DataError` (`data_too_large`) above `MAX_TOKENS`, what the
    processes raise, and as `Pool.results`; the processes are gone then.
    """
    whole, waiting = _Whole(), dict[int, Part]()
    tokens = 0
    for number, part in _encoded(pieces, prepare, setup, processes):
        waiting[number] = part
        while whole.parts in waiting:
            whole.add(waiting.pop(whole.parts))
        tokens += len(part.samples.ids)
        if tokens > MAX_TOKENS:
            raise DataError(
                f"The data has more than {MAX_TOKENS:,} tokens.",
                "Give a smaller file, or a part of this one.",
                code="data_too_large",
            )
        if done is not None:
            done(number)
    return whole.part()


def _encoded(
    pieces: Iterator[Any], prepare: Callable[[Any], Work], setup: Any, processes: int
) -> Iterator[tuple[int, Part]]:
    if processes == 1:
        work = prepare(setup)
        yield from ((number, work(piece)) for number, piece in enumerate(pieces))
        return
    with pool(prepare, setup, processes) as running:
        yield from running.results(pieces)


class _Growing:
    """An array that grows where it is: large ones are moved by the kernel, without a second copy in memory."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._values = np.empty(0, dtype)
        self.size = 0

    def add(self, values: NDArray[Any]) -> None:
        """Append `values`."""
        end = self.size + len(values)
        if end > len(self._values):
            self._values.resize(max(end, len(self._values) * 9 // 8, _LEAST), refcheck=False)
        self._values[self.size : end] = values
        self.size = end

    def taken(self) -> NDArray[Any]:
        """The array; nothing can be added any more."""
        self._values.resize(self.size, refcheck=False)
        return self._values


class _Whole:
    """The parts so far, one after the other."""

    def __init__(self) -> None:
        self.parts = 0
        self._ids, self._flags, self._ends = _Growing(np.int32), _Growing(np.uint8), _Growing(np.int64)
        self._records = self._bad = 0
        self._faults: list[Fault] = []
        self._ignored: Counter[str] = Counter()

    def add(self, part: Part) -> None:
        """Append the next part."""
        self.parts += 1
        self._ends.add(part.samples.ends + self._ids.size)
        self._ids.add(part.samples.ids)
        self._flags.add(part.samples.flags)
        self._records += part.records
        self._bad += part.bad
        self._faults += part.faults[: KEPT_FAULTS - len(self._faults)]
        for key, times in sorted(part.ignored.items()):
            if key in self._ignored or len(self._ignored) < _MAX_IGNORED:
                self._ignored[key] += times

    def part(self) -> Part:
        """All of it as one part."""
        return Part(
            samples=Ragged(ids=self._ids.taken(), flags=self._flags.taken(), ends=self._ends.taken()),
            records=self._records,
            faults=tuple(self._faults),
            bad=self._bad,
            ignored=dict(self._ignored),
        )
