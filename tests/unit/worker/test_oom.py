"""A killed process counts as out of memory only where the kernel says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import RunError
from engine.worker.channel import Channel, pair
from engine.worker.children import Child, last_words
from engine.worker.oom import OomWatch, logged_kill, oom_kills

FIRST = "pid:[4026531836]"


def counter(path: Path, kills: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"low 0\noom 3\noom_kill {kills}\noom_group_kill 0\n")


@pytest.mark.parametrize(
    ("membership", "place"),
    [
        ("0::/docker/abc\n", "docker/abc/memory.events"),
        ("0::/\n", "memory.events"),
        ("0::/seen/by/the/host\n", "memory.events"),
        ("12:pids:/x\n4:cpu,memory:/job/7\n0::/\n", "memory/job/7/memory.oom_control"),
        ("4:memory:/host/path\n", "memory/memory.oom_control"),
    ],
)
def test_the_kernels_counter_is_read_wherever_the_cgroup_is(tmp_path: Path, membership: str, place: str) -> None:
    assert oom_kills(membership, tmp_path) is None
    counter(tmp_path / place, 2)
    assert oom_kills(membership, tmp_path) == 2


def test_a_counter_that_is_absent_or_damaged_is_unknown_and_not_zero(tmp_path: Path) -> None:
    (tmp_path / "memory.events").write_text("oom_kill many\n")
    assert oom_kills("0::/\n", tmp_path) is None
    assert oom_kills("nonsense", tmp_path / "none") is None


def test_the_kernels_log_is_believed_for_this_pid_after_the_start_and_in_the_first_namespace(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_text(
        "6,1,100000000,-;Out of memory: Killed process 41 (python3) total-vm:1kB\n"
        "6,2,200000000,-;Memory cgroup out of memory: Killed process 42 (python3) total-vm:1kB\n"
        " SUBSYSTEM=cpu\n"
    )
    assert logged_kill(42, 150.0, log, FIRST)
    assert not logged_kill(41, 150.0, log, FIRST)
    assert not logged_kill(4, 0.0, log, FIRST)
    assert not logged_kill(42, 150.0, log, "pid:[4026532000]")
    assert not logged_kill(42, 150.0, tmp_path / "none", FIRST)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    """A process with the supervisor's end of its channel; nothing answers on it once the process is gone."""
    ours, theirs = pair()
    code = "import sys, time; print('loading libfoo failed', file=sys.stderr, flush=True); time.sleep(600)"
    with (tmp_path / "raw.log").open("wb") as log, theirs:
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()], stderr=log)
    made = Child("trainer", process, Channel(ours.detach()), tmp_path / "raw.log")
    until = time.monotonic() + 60
    while not last_words(tmp_path / "raw.log") and time.monotonic() < until:
        time.sleep(0.01)
    yield made
    made.kill()
    made.channel.close()


def died(child: Child, number: signal.Signals) -> RunError:
    os.kill(child.pid, number)
    with pytest.raises(RunError) as caught:
        child.expect("ready", 60)
    return caught.value


def test_a_trainer_that_somebody_killed_is_not_called_out_of_memory(child: Child) -> None:
    error = died(child, signal.SIGKILL)
    assert error.code == "trainer_killed"
    assert error.message == (
        "The trainer was killed by signal 9; if you did not do it, the machine may have run out of memory."
    )
    assert error.hint


def test_it_is_where_the_kernel_counted_a_kill_meanwhile(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OomWatch, "killed", lambda self, pid: pid == child.pid)
    error = died(child, signal.SIGKILL)
    assert (error.code, error.message) == (
        "trainer_out_of_memory",
        "The trainer was killed by the kernel, because memory ran out.",
    )


def test_the_last_words_of_a_raw_trainer_are_quoted(child: Child) -> None:
    error = died(child, signal.SIGSEGV)
    assert error.code == "trainer_worker_died"
    assert "by signal 11" in error.message
    assert "loading libfoo failed" in error.message


def test_last_words_are_bounded_and_hold_no_control_characters(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n" * 5000 + b"\x1b[2J\xff\x9b" + b"y" * 1000 + b"\n\n")
    words = last_words(log)
    assert len(words) == 400
    assert words.isprintable()
    assert last_words(tmp_path / "none") == ""
