"""Processes that work on pieces of a large task, each in one piece at a time, and that never outlive it.

A process is this interpreter started again (nothing is forked) and linked by one socket: it ends when the socket
closes, so that it is gone with its parent however that ends, even if that is interrupted while it starts it. It has a
session of its own, so that Ctrl-C in a terminal reaches only the parent, which then kills it.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import GlasshouseError
from engine.system.memory import available_memory

WORKER_BYTES: Final = 256 * 1024 * 1024
"""Memory that a process may need: the interpreter, a large tokenizer, one piece and its result."""
MOST: Final = 64
_PACKAGES: Final = Path(__file__).resolve().parents[3]


def sensible_processes() -> int:
    """One for each core that this process may use, as far as the free memory goes; at least one."""
    free = available_memory()
    by_memory = MOST if free is None else free // (2 * WORKER_BYTES)
    return max(1, min(len(os.sched_getaffinity(0)), by_memory, MOST))


class _Worker(msgspec.Struct, eq=False):
    process: subprocess.Popen[bytes]
    link: Connection
    is_busy: bool = False


class Pool:
    """`count` processes that each call `prepare(setup)` once and then the function that it returns for every piece.

    `prepare` is a function of a module, so that it can be found again by its name.
    """

    def __init__(self, prepare: Callable[[Any], Callable[[Any], Any]], setup: Any, count: int) -> None:
        self._workers: list[_Worker] = []
        first = pickle.dumps((prepare, setup))
        try:
            for _ in range(count):
                self._workers.append(_started())
            for worker in self._workers:
                _send(worker, first)
        except BaseException:
            self.kill()
            raise

    def results(self, pieces: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        """(number of the piece, its result), as they are done. Each process has at most one piece; none is read ahead.

        An error in a process is raised here, and `GlasshouseError` (`data_worker_died`) if one ends by itself.
        """
        numbered = enumerate(pieces)
        more = self._hand_out(numbered)
        while busy := [worker for worker in self._workers if worker.is_busy]:
            ready = wait([worker.link for worker in busy])
            done = [_received(worker) for worker in busy if worker.link in ready]
            if more:
                more = self._hand_out(numbered)
            yield from done

    def _hand_out(self, numbered: Iterator[tuple[int, Any]]) -> bool:
        """Give every idle process a piece; False when there are no more."""
        for worker in self._workers:
            if not worker.is_busy:
                piece = next(numbered, None)
                if piece is None:
                    return False
                _send(worker, pickle.dumps(piece))
                worker.is_busy = True
        return True

    def kill(self) -> None:
        """End all processes at once and wait until they are gone."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.link.close()
        self._workers.clear()


@contextmanager
def pool(prepare: Callable[[Any], Callable[[Any], Any]], setup: Any, count: int) -> Iterator[Pool]:
    """A `Pool` whose processes are gone when the block ends, by an error or Ctrl-C too."""
    processes = Pool(prepare, setup, count)
    try:
        yield processes
    finally:
        processes.kill()


def _started() -> _Worker:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env=_environment(),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        return _Worker(process, Connection(ours.detach()))


def _environment() -> dict[str, str]:
    """One thread a process: there is a process for every core."""
    path = os.pathsep.join(filter(None, (str(_PACKAGES), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}


def _send(worker: _Worker, message: bytes) -> None:
    try:
        worker.link.send_bytes(message)
    except OSError as error:
        raise _died(worker) from error


def _received(worker: _Worker) -> tuple[int, Any]:
    try:
        number, result = pickle.loads(worker.link.recv_bytes())  # noqa: S301  from our own process
    except (EOFError, OSError) as error:
        raise _died(worker) from error
    worker.is_busy = False
    if isinstance(result, BaseException):
        raise result
    return number, result


def _died(worker: _Worker) -> GlasshouseError:
    with suppress(subprocess.TimeoutExpired):
        worker.process.wait(5)
    status = worker.process.poll()
    how = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
    return GlasshouseError(
        f"A process that turns the data into token ids ended {how}.",
        "Check how much memory this machine has left, then try again; if it happens twice, report it as a bug.",
        code="data_worker_died",
    )
