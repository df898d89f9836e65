"""The line on stderr that says how far a large data file is read, and how long that will still take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import IO, Final

_CLEAR_LINE: Final = "\r\x1b[K"
_SILENT_SECONDS: Final = 1.0
_ON_A_TERMINAL: Final = 0.25
_ELSEWHERE: Final = 10.0
_MB: Final = 1_000_000


class DataProgress:
    """Called with bytes done and bytes in total. What takes less than a second is not mentioned.

    On a terminal the line overwrites itself and is gone at the end; elsewhere there is a new one every ten seconds.
    """

    def __init__(self, stream: IO[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._began = clock()
        self._next = self._began + (_SILENT_SECONDS if self._terminal else _ELSEWHERE)
        self._open = False

    def __call__(self, done: int, total: int) -> None:
        """Write the line if it is time for it."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (_ON_A_TERMINAL if self._terminal else _ELSEWHERE)
        line = progress_text(done, total, now - self._began)
        self._stream.write(f"{_CLEAR_LINE}{line}" if self._terminal else f"{line}\n")
        self._stream.flush()
        self._open = self._terminal

    def close(self) -> None:
        """Remove the line."""
        if self._open:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
            self._open = False


def progress_text(done: int, total: int, seconds: float) -> str:
    """`data: 113 of 226 MB (50 %), about 12 s left`; no estimate without bytes or time to go by."""
    if total <= 0:
        return f"data: {done / _MB:,.0f} MB"
    share = min(1.0, done / total)
    text = f"data: {min(done, total) / _MB:,.0f} of {total / _MB:,.0f} MB ({math.floor(100 * share)} %)"
    if not share or seconds <= 0:
        return text
    left = seconds * (1 - share) / share
    return f"{text}, about {f'{left / 60:.0f} min' if left > 120 else f'{math.ceil(left)} s'} left"
