"""Data that can be read only once (standard input, a pipe, a process substitution), copied once into a private file.

A file or folder is used where it is. The copy belongs to the caller: with `spool` it is in a folder that the caller
owns and removes, such as that of a run; with `spooled` it is gone when the block ends.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from engine.errors import DataError
from engine.payload.data.stream import CHUNK, unreadable
from engine.system.files import private_file

MAX_SPOOLED_BYTES: Final = 16 * 1024**3
PATIENCE_SECONDS: Final = 60.0
STANDARD_INPUT: Final = Path("-")
_DESCRIPTORS: Final = ("/dev/fd/", "/dev/stdin", "/proc/")


def is_stream(path: Path) -> bool:
    """Whether `path` can be read only once, or by this process only: `-`, a pipe, or a descriptor by its name."""
    if path == STANDARD_INPUT:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or (stat.S_ISREG(mode) and str(path).startswith(_DESCRIPTORS))


@contextmanager
def spooled(path: Path, *, patience: float | None = None) -> Iterator[Path]:
    """`path`, or a private copy of the stream that it is, in a temporary folder that is removed after the block.

    Raises as `spool`.
    """
    if not is_stream(path):
        yield path
        return
    with _ended_by_signals(), tempfile.TemporaryDirectory(prefix="glasshouse-data-") as folder:  # mode 0700
        yield spool(path, Path(folder), patience=patience)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """A closed terminal and a request to end leave the block as an exception, so that the copy is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def spool(path: Path, folder: Path, *, most: int = MAX_SPOOLED_BYTES, patience: float | None = None) -> Path:
    """`path`, or a copy (mode 0600) in `folder` of the stream that it is.

    Raises `DataError`: `data_no_input` when nothing comes for `patience` seconds, `data_too_large` above `most` bytes,
    `data_unreadable`, also for a terminal. Nothing of the copy is left then.
    """
    if not is_stream(path):
        return path
    copy = folder / f"data-{secrets.token_hex(8)}"
    try:
        with _opened(path) as descriptor, private_file(copy, durable=False) as file:
            _copy(descriptor, file, most, PATIENCE_SECONDS if patience is None else patience)
    except OSError as error:
        raise unreadable(path, error) from error
    return copy


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    if path == STANDARD_INPUT:
        if os.isatty(0):
            raise DataError(
                "Standard input is a terminal, not data.",
                "Pipe the data in, or give a file with --data.",
                code="data_unreadable",
            )
        yield 0
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _copy(descriptor: int, file: BinaryIO, most: int, patience: float) -> None:
    size = 0
    while piece := _next(descriptor, patience):
        size += len(piece)
        if size > most:
            raise DataError(
                f"The input is larger than the limit of {most:,} bytes.",
                "Give the data as a file with --data.",
                code="data_too_large",
            )
        file.write(piece)


def _next(descriptor: int, patience: float) -> bytes:
    """The next bytes; empty at the end. Of a named pipe that nobody writes to yet, poll reports nothing, and no end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(patience * 1000):
        raise DataError(
            f"No data came for {patience:g} seconds.",
            "Check the command that writes the data, or give a file with --data.",
            code="data_no_input",
        )
    return os.read(descriptor, CHUNK)
