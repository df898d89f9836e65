from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.remote.programs.processes import MARK, Process, live_process, of_folder, terminate

SLEEP = "import time; time.sleep(600)"
IGNORES_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


class Started:
    """Processes of one test, ended after it."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def __call__(self, *command: str, mark: Path | None = None, cwd: Path | None = None) -> Process:
        env = {**os.environ, **({MARK: str(mark)} if mark else {})}
        made = subprocess.Popen(command, env=env, cwd=cwd, stdout=subprocess.PIPE, start_new_session=True)
        self.all.append(made)
        process = live_process(made.pid)
        assert process is not None
        return process

    def line(self) -> bytes:
        out = self.all[-1].stdout
        assert out is not None
        return out.readline()


@pytest.fixture
def start() -> Iterator[Started]:
    started = Started()
    yield started
    for process in started.all:
        process.kill()
        process.communicate()


def _pids(folder: Path, launched: set[tuple[int, int]] | None = None) -> set[int]:
    return {process.pid for process in of_folder(folder, launched or set())}


def _wait_for_program(process: Process) -> None:
    """Wait until the child has executed its program: before that its command line is the parent's."""
    while Path(f"/proc/{process.pid}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes():
        time.sleep(0.005)


def test_marked_processes_and_their_descendants_belong(tmp_path: Path, start: Started) -> None:
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], env={{}}, start_new_session=True)\n"
        "print(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = start(sys.executable, "-c", program, mark=tmp_path)
    child = int(start.line())
    assert _pids(tmp_path) == {parent.pid, child}
    assert terminate(of_folder(tmp_path), grace=2.0) == []
    assert live_process(child) is None


def test_a_process_that_only_reads_the_folder_is_left_alone(tmp_path: Path, start: Started) -> None:
    start("tail", "-f", "/dev/null", str(tmp_path / "server.log"), cwd=tmp_path)
    start(sys.executable, "-c", SLEEP, mark=tmp_path.with_name(f"{tmp_path.name}-other"))
    time.sleep(0.1)
    assert _pids(tmp_path) == set()


def test_a_bundle_is_recognised_by_its_run_folder_or_by_its_supervisors_session(tmp_path: Path, start: Started) -> None:
    run = str(tmp_path / "root" / "run")
    supervisor = start(sys.executable, "-c", SLEEP, "/proc/self/fd/3", "supervisor", "--dir", run)
    trainer = start(sys.executable, "-c", SLEEP, "/proc/self/fd/3", "trainer")
    _wait_for_program(supervisor)
    _wait_for_program(trainer)
    assert _pids(tmp_path) == {supervisor.pid}
    assert _pids(tmp_path, {(trainer.pid, trainer.start)}) == {supervisor.pid, trainer.pid}
    assert _pids(tmp_path, {(trainer.pid, trainer.start + 1)}) == {supervisor.pid}


def test_the_caller_and_its_ancestors_never_belong(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom engine.remote.programs.processes import of_folder\n"
        f"print([process.pid for process in of_folder(Path({str(tmp_path)!r}))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, MARK: str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"[]\n"


def test_a_process_that_ignores_sigterm_is_killed(start: Started) -> None:
    process = start(sys.executable, "-c", IGNORES_SIGTERM)
    start.line()
    began = time.monotonic()
    assert terminate([process], grace=0.2) == []
    assert time.monotonic() - began >= 0.2
    assert start.all[-1].wait() == -signal.SIGKILL


def test_another_process_with_the_same_pid_is_not_signalled(start: Started) -> None:
    other = start(sys.executable, "-c", SLEEP)
    earlier = other._replace(start=other.start - 1)
    assert terminate([earlier], grace=0.1) == []
    with pytest.raises(subprocess.TimeoutExpired):
        start.all[-1].wait(0.5)
