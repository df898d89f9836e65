"""The progress line of a large data file."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from glasshouse_tui.commands.data_progress import DataProgress, progress_text


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def ticking(times: list[float]) -> Callable[[], float]:
    waiting = iter(times)
    return lambda: next(waiting)


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (113_000_000, 226_000_000, 12.0, "data: 113 of 226 MB (50 %), about 12 s left"),
        (1_000_000, 226_000_000, 12.0, "data: 1 of 226 MB (0 %), about 45 min left"),
        (0, 226_000_000, 3.0, "data: 0 of 226 MB (0 %)"),
        (230_000_000, 226_000_000, 3.0, "data: 226 of 226 MB (100 %), about 0 s left"),
        (5_000_000, 0, 3.0, "data: 5 MB"),
    ],
)
def test_the_line_says_how_much_is_done_and_how_long_it_will_take(
    done: int, total: int, seconds: float, text: str
) -> None:
    assert progress_text(done, total, seconds) == text


def test_what_is_quick_is_not_mentioned() -> None:
    stream = Terminal()
    progress = DataProgress(stream, clock=ticking([0.0, 0.5, 0.9]))
    progress(1, 2)
    progress(2, 2)
    progress.close()
    assert stream.getvalue() == ""


def test_on_a_terminal_the_line_overwrites_itself_and_is_gone_at_the_end() -> None:
    stream = Terminal()
    progress = DataProgress(stream, clock=ticking([0.0, 2.0, 2.1, 3.0]))
    for done in (10_000_000, 11_000_000, 20_000_000):
        progress(done, 40_000_000)
    progress.close()
    shown = stream.getvalue()
    assert shown.count("\r\x1b[K") == 3
    assert "\n" not in shown
    assert "11 of" not in shown
    assert shown.endswith("about 3 s left\r\x1b[K")


def test_elsewhere_there_is_a_line_every_ten_seconds_without_control_characters() -> None:
    stream = io.StringIO()
    progress = DataProgress(stream, clock=ticking([0.0, 5.0, 11.0, 12.0, 22.0]))
    for _ in range(4):
        progress(10_000_000, 40_000_000)
    progress.close()
    assert stream.getvalue().count("\n") == 2
    assert "\x1b" not in stream.getvalue()
