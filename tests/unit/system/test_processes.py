"""A pid together with its start time and boot names one process, and no later one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from engine.system.clock import boot_id, boot_seconds
from engine.system.processes import is_alive, live_process, read_stat, start_ticks

NAMED = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b') Z 1 (', 0, 0, 0); print(flush=True); sys.stdin.read()"


def test_a_process_is_alive_until_it_has_ended_and_its_pid_alone_is_not_enough() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        start = start_ticks(process.pid)
        assert start is not None
        assert is_alive(process.pid, start)
        assert is_alive(process.pid, start, boot_id())
        assert not is_alive(process.pid, start + 1)
        assert not is_alive(process.pid, start, "another boot")
    finally:
        process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    stat = read_stat(process.pid)
    assert stat is not None
    assert stat.has_ended
    assert live_process(process.pid) is None
    assert not is_alive(process.pid, start)
    process.wait()
    assert read_stat(process.pid) is None


def test_a_process_that_chose_a_misleading_name_is_still_read_right() -> None:
    with subprocess.Popen([sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert b") Z 1 (" in Path(f"/proc/{process.pid}/stat").read_bytes()
        stat = live_process(process.pid)
        assert stat is not None
        assert (stat.pid, stat.parent, stat.has_ended) == (process.pid, os.getpid(), False)
        process.send_signal(signal.SIGKILL)


def test_the_boot_clock_goes_forward_and_has_an_id() -> None:
    first = boot_seconds()
    assert boot_seconds() >= first > 0
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
