"""What commands write: one JSON document or text on stdout, notes and errors on stderr."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from engine.errors import UsageError
from engine.system.text import visible, visible_json
from glasshouse_tui.format import parse_time

if TYPE_CHECKING:
    from engine.store.failure import Failure
    from engine.store.views import RunView

UNKNOWN = "unknown"
_LAYOUT = "\n\t"


def emit_json(document: object) -> None:
    """Write one JSON document (UTF-8, indented; NaN and infinities become null) to stdout.

    Foreign text in it cannot control the terminal either: see `visible_json`.
    """
    body = visible_json(msgspec.json.format(msgspec.json.encode(document), indent=2)) + b"\n"
    sys.stdout.flush()
    sys.stdout.buffer.write(body)
    sys.stdout.buffer.flush()


def emit_text(text: str) -> None:
    """Write text and a newline to stdout; whatever it quotes cannot control the terminal."""
    sys.stdout.write(visible(text, keep=_LAYOUT) + "\n")


def say(text: str) -> None:
    """Write text and a newline to stderr, as `emit_text` does, and flush it."""
    sys.stderr.write(visible(text, keep=_LAYOUT) + "\n")
    sys.stderr.flush()


def note(text: str) -> None:
    """Write a note for the user to stderr."""
    say(f"note: {text}")


def plain(text: object) -> str:
    """`text` on one line, control characters escaped: it can neither control the terminal nor fake a line."""
    return visible(str(text))


def failure_lines(failure: Failure, *, indent: str = "  ") -> list[str]:
    """What to do about a stored failure, and what it came from, one line each."""
    lines = [line for line in failure.hint.splitlines() if line.strip()]
    lines += [f"caused by {cause}" for cause in failure.cause]
    return [f"{indent}{plain(line)}" for line in lines]


def other_failures(view: RunView) -> list[str]:
    """What failed beside the run itself, and what to do about it."""
    lines: list[str] = []
    for move in view.failures:
        if move.error is not None:
            lines += [f"{move.subject} {move.state}: {plain(move.error.text)}", *failure_lines(move.error)]
    return lines


def failures_document(view: RunView) -> list[dict[str, Any]]:
    """The same for JSON: subject and state beside code, message, hint and cause."""
    return [{"subject": one.subject, "state": one.state, **as_builtins(one.error)} for one in view.failures]


def as_builtins(value: object) -> Any:
    """A view as builtins for JSON, with the field names used in JSON."""
    return msgspec.to_builtins(value)


def known(value: object, unit: str = "") -> str:
    """The value as text, or `unknown`."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:,.10g}".replace(",", "") if isinstance(value, float) else plain(value)
    return f"{text}{unit}"


def seconds(value: float | None) -> str:
    """A duration: `15.203 s`, `900.4 s`, or `unknown`."""
    if value is None:
        return UNKNOWN
    return f"{value:.3f} s" if value < 100 else f"{value:.1f} s"


def rate(steps: int | None, elapsed: float | None) -> str:
    """Steps per second: `118.2 steps/s`, or `unknown`."""
    return f"{steps / elapsed:.1f} steps/s" if steps is not None and elapsed else UNKNOWN


def loss(value: float | None, digits: int = 7) -> str:
    """A loss with `digits` significant digits, or `unknown`."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def local_time(stamp: str | None) -> str:
    """A UTC timestamp of the store as local time with its zone, or `unknown`."""
    moment = parse_time(stamp)
    return UNKNOWN if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """A text table, its columns padded to the widest cell; the columns in `right` are right-aligned."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def on_terminal() -> bool:
    """True if all three standard streams are a terminal that can draw."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(stream is not None and stream.isatty() for stream in streams) and os.environ.get("TERM") != "dumb"


def can_ask() -> bool:
    """True if stdin and stderr are a terminal, so that the user can be prompted."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def new_file(path: Path | None) -> Iterator[BinaryIO]:
    """A new file at `path`, created before the block runs and removed if the block fails; for None, a discarded buffer.

    Raises `UsageError` (`output_exists`, `output_unwritable`).
    """
    if path is None:
        yield io.BytesIO()
        return
    try:
        file = path.open("xb")
    except FileExistsError as error:
        raise UsageError(f"{path} already exists.", "Give -o another name.", code="output_exists") from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}.", "Give -o another path.", code="output_unwritable"
        ) from error
    try:
        with file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise
