"""Processes that share a task: every result, every error, and nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.errors import DataError, GlasshouseError
from engine.payload.prepare.pool import Pool, pool, sensible_processes
from tests.unit.payload.prepare import pieces

ROOT = Path(pieces.__file__).parents[4]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("count", [1, 3])
def test_every_piece_has_its_result(count: int) -> None:
    with pool(pieces.doubling, 5, count) as processes:
        results = dict(processes.results(iter(range(40))))
    assert results == {number: 2 * number + 5 for number in range(40)}


def test_no_more_pieces_are_read_than_are_worked_on() -> None:
    read, done = 0, 0

    def reading() -> Iterator[int]:
        nonlocal read
        for number in range(30):
            read += 1
            yield number

    with pool(pieces.doubling, 0, 2) as processes:
        for _ in processes.results(reading()):
            done += 1
            assert read - done <= 4
    assert done == 30


def test_an_error_of_ours_arrives_with_its_code() -> None:
    with pytest.raises(DataError) as failure, pool(pieces.failing, None, 2) as processes:
        list(processes.results(iter(range(10))))
    assert (failure.value.code, failure.value.hint) == ("data_three", "Give another number.")


def test_an_error_in_preparing_arrives_too() -> None:
    with pytest.raises(DataError) as failure, pool(pieces.unready, None, 2) as processes:
        list(processes.results(iter(range(10))))
    assert failure.value.code == "tokenizer_invalid"


def test_an_unexpected_error_does_not_quote_the_data() -> None:
    with (
        pytest.raises(RuntimeError, match=r"ValueError .* at worker\.py:\d+") as failure,
        pool(pieces.quoting, None, 1) as processes,
    ):
        list(processes.results(iter(["secret words"])))
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_is_reported(signum: int) -> None:
    with pytest.raises(GlasshouseError) as failure, pool(pieces.dying, int(signum), 2) as processes:
        list(processes.results(iter(range(10))))
    assert (failure.value.code, failure.value.exit_code) == ("data_worker_died", 1)
    assert f"signal {int(signum)}" in failure.value.message


def test_a_process_that_leaves_is_reported() -> None:
    with pytest.raises(GlasshouseError) as failure, pool(pieces.leaving, None, 1) as processes:
        list(processes.results(iter(range(10))))
    assert "status 7" in failure.value.message


def test_a_piece_that_needs_too_much_memory_is_reported() -> None:
    with pytest.raises(GlasshouseError) as failure, pool(pieces.starving, None, 1) as processes:
        list(processes.results(iter(range(3))))
    assert (failure.value.code, "memory" in failure.value.message) == ("data_worker_died", True)


def test_an_error_while_reading_ends_all_processes() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"), pool(pieces.sleeping, Path("/nonexistent"), 2) as processes:
        list(processes.results(broken()))


def test_a_pool_that_is_killed_twice_stays_so() -> None:
    processes = Pool(pieces.doubling, 0, 1)
    processes.kill()
    processes.kill()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_parent_that_is_interrupted_or_killed(tmp_path: Path, signum: int) -> None:
    script = f"import sys; from {pieces.__name__} import sleep_in_a_pool; sleep_in_a_pool(sys.argv[1])"
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while len(at_work := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    os.kill(parent.pid, signum)
    _, said = parent.communicate()
    if signum == signal.SIGINT:
        assert said.rstrip().endswith("KeyboardInterrupt")
        assert said.count("Traceback") == 1
        assert not any(map(psutil.pid_exists, at_work))
    until = time.monotonic() + 300
    while any(map(psutil.pid_exists, at_work)):  # without a parent they notice by themselves
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_number_of_processes_is_sensible() -> None:
    assert 1 <= sensible_processes() <= len(os.sched_getaffinity(0))
