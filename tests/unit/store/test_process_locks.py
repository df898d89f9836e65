"""One runner per run: the lock of a running process holds, that of a dead one does not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import StoreError
from engine.plan import Plan
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.system.clock import boot_id
from engine.system.processes import is_alive, start_ticks

Child = Callable[..., "subprocess.Popen[str]"]

CLAIM_AND_WAIT = """
import sys
from pathlib import Path
from engine.store.writer import Writer
Writer(Path(sys.argv[1])).claim_runner("run-a")
print("claimed", flush=True)
sys.stdin.read()
"""


def claimed(child: Child, home: Path) -> subprocess.Popen[str]:
    process = child(CLAIM_AND_WAIT, home)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


def killed_but_not_reaped(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_run_without_runner_is_orphaned_and_with_one_is_not(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    assert reader.run("run-a").summary.orphaned
    writer.claim_runner("run-a")
    assert not reader.run("run-a").summary.orphaned
    writer.release_runner("run-a")
    assert reader.runs()[0].orphaned
    writer.transition("run-a", "run", "failed")
    assert not reader.run("run-a").summary.orphaned


def test_second_runner_is_refused_while_the_first_lives(
    home: Path, reader: Reader, writer: Writer, plan: Plan, child: Child
) -> None:
    writer.create_run("run-a", plan)
    runner = claimed(child, home)
    with pytest.raises(StoreError) as caught:
        writer.claim_runner("run-a")
    assert caught.value.code == "run_locked"
    assert str(runner.pid) in caught.value.message
    assert not reader.run("run-a").summary.orphaned


def test_killed_runner_leaves_an_orphan_that_can_be_claimed(
    home: Path, reader: Reader, writer: Writer, plan: Plan, child: Child
) -> None:
    writer.create_run("run-a", plan)
    killed_but_not_reaped(claimed(child, home))
    assert reader.unfinished()[0].orphaned
    writer.claim_runner("run-a")
    assert not reader.unfinished()[0].orphaned


def test_a_claim_for_another_process_belongs_to_that_process(
    home: Path, reader: Reader, writer: Writer, plan: Plan
) -> None:
    writer.create_run("run-a", plan)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        writer.claim_runner("run-a", sleeper.pid)
        writer.release_runner("run-a")
        with pytest.raises(StoreError):
            writer.claim_runner("run-a")
    finally:
        sleeper.kill()
        sleeper.wait()
    assert reader.run("run-a").summary.orphaned


def test_runner_can_claim_again(writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.claim_runner("run-a")
    writer.claim_runner("run-a")


def test_process_that_is_gone_cannot_claim(writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    with pytest.raises(StoreError):
        writer.claim_runner("run-a", done.pid)


def test_a_machine_is_locked_by_one_run_at_a_time(home: Path, writer: Writer, child: Child) -> None:
    code = CLAIM_AND_WAIT.replace('claim_runner("run-a")', 'claim_allocation("local")')
    holder = child(code, home)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "claimed\n"
    assert not writer.claim_allocation("local")
    assert writer.claim_allocation("other")
    killed_but_not_reaped(holder)
    assert writer.claim_allocation("local")
    writer.release_allocation("local")


def test_the_start_time_distinguishes_processes_with_the_same_pid() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    assert is_alive(os.getpid(), ticks, boot_id())
    assert not is_alive(os.getpid(), ticks + 1, boot_id())
    assert not is_alive(os.getpid(), ticks, "another boot")
    time.sleep(0.05)
    assert start_ticks(os.getpid()) == ticks


def test_the_start_time_is_read_despite_a_misleading_process_name(tmp_path: Path) -> None:
    program = tmp_path / ") R 1 2 3 ("
    program.symlink_to(shutil.which("sleep") or "/bin/sleep")
    named = subprocess.Popen([program, "60"])
    try:
        assert (start_ticks(named.pid) or 0) > (start_ticks(os.getpid()) or 0)
    finally:
        named.kill()
        named.wait()
