"""One process of a `Pool`: `python -m engine.payload.prepare.worker DESCRIPTOR`."""

from __future__ import annotations

import os
import pickle
import select
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

from engine.errors import GlasshouseError


def serve(link: Connection) -> None:
    """Answer every piece with its result or its error, until the other end closes. Errors of ours keep their code."""
    prepare, setup = pickle.loads(link.recv_bytes())  # noqa: S301  from our own parent
    work: Callable[[Any], Any] | None = None
    while True:
        number, piece = pickle.loads(link.recv_bytes())  # noqa: S301
        try:
            work = work or prepare(setup)
            result = work(piece)
        except GlasshouseError as error:
            result = error
        except MemoryError:
            result = out_of_memory()
        except Exception as error:  # its text may quote the data
            result = RuntimeError(f"{type(error).__name__} in a process that prepares data, at {_place(error)}")
        link.send_bytes(pickle.dumps((number, result), protocol=pickle.HIGHEST_PROTOCOL))


def out_of_memory() -> GlasshouseError:
    """`data_worker_died`: there was not enough memory for a piece."""
    return GlasshouseError(
        "A process that turns the data into token ids ran out of memory.",
        "Free some memory on this machine, or split very long samples; then try again.",
        code="data_worker_died",
    )


def _place(error: BaseException) -> str:
    """Module file and line where an error came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _leave_with_parent(descriptor: int) -> None:
    """End this process when the other end of the link closes, in the middle of a piece too."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def main() -> int:
    """Serve one parent."""
    descriptor = int(sys.argv[1])
    Thread(target=_leave_with_parent, args=(descriptor,), daemon=True).start()
    try:
        serve(Connection(descriptor))
    except (EOFError, ConnectionError):  # the parent is done, or gone
        return 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
