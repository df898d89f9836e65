"""Each process of a protected segment killed at each stage: what can be wiped is wiped, and no wipe is claimed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from engine.plan import Target
from engine.wire import RELEASE_PLAN_COMPLETED, ZEROIZE_DONE
from tests.functional.runs.pod import Pod

ROLES = {
    "trainer": ("trainer",),
    "opener": ("keyproc", "open"),
    "sealer": ("keyproc", "seal"),
    "scanner": ("scanner",),
    "supervisor": ("supervisor",),
}
TRAINER = "engine/worker/trainer.py"
CODES = {"trainer": "trainer_", "opener": "keyproc_", "sealer": "keyproc_", "scanner": "scanner_"}


@pytest.fixture
def pod(small_pod: Callable[..., Pod], request: pytest.FixtureRequest) -> Pod:
    """A pod that trains until it is stopped, or only briefly when the crash comes after the training."""
    state = request.getfixturevalue("state")
    seconds = 0.2 if state in {"sealing", "zeroizing"} else 60.0
    return small_pod(target=Target(seconds=seconds))


def kill_in(pod: Pod, state: str, victim: str) -> None:
    """Kill a process as soon as a state is logged; the supervisor is suspended meanwhile."""
    pod.wait_state(state)
    supervisor = pod.role("supervisor")
    supervisor.suspend()
    pod.role(*ROLES[victim]).send_signal(signal.SIGKILL)
    if victim != "supervisor":
        supervisor.resume()


def payload(pod: Pod) -> list[Path]:
    """The supervisor's own descriptors of the payload, from outside; empty where /proc denies access."""
    names = ("/memfd:tokens", "/memfd:weights", "/memfd:adapter")
    try:
        entries = list(Path(f"/proc/{pod.pid}/fd").iterdir())
        return [entry for entry in entries if str(entry.readlink()).startswith(names)]
    except PermissionError:
        return []


def held(pod: Pod) -> list[int]:
    """The payload's memfds, kept open here so that they can be read after every process has ended."""
    return [os.open(path, os.O_RDONLY) for path in payload(pod)]


def content(fds: list[int]) -> bytes:
    return b"".join(os.pread(fd, os.fstat(fd).st_size, 0) for fd in fds)


@pytest.mark.parametrize(
    ("state", "victim"),
    [
        ("launching", "trainer"), ("launching", "scanner"),
        ("attesting", "trainer"), ("attesting", "opener"), ("attesting", "sealer"), ("attesting", "scanner"),
    ],
)  # fmt: skip
def test_a_process_killed_before_the_release_means_no_key_is_released(state: str, victim: str, pod: Pod) -> None:
    pod.launch()
    if state == "launching":
        pod.role("keyproc", "seal")  # the last process to be started
    kill_in(pod, state, victim)
    last = pod.finish()
    assert last["state"] == "failed"
    assert last["code"].startswith(CODES[victim])
    assert pod.named(RELEASE_PLAN_COMPLETED) is None
    assert pod.named(ZEROIZE_DONE) is None


@pytest.mark.parametrize(
    ("state", "victim"),
    [
        ("training", "trainer"), ("sealing", "trainer"), ("zeroizing", "trainer"),
        ("releasing", "opener"), ("sealing", "sealer"),
        ("training", "scanner"), ("zeroizing", "scanner"),
    ],
)  # fmt: skip
def test_a_process_killed_after_the_release_has_the_rest_wiped_and_nothing_proven(
    state: str, victim: str, pod: Pod
) -> None:
    pod.launch()
    result = pod.attest()
    fds = held(pod)
    if state == "releasing":
        supervisor = pod.role("supervisor")
        supervisor.suspend()
        pod.answer(result)
        pod.role(*ROLES[victim]).send_signal(signal.SIGKILL)
        supervisor.resume()
    else:
        pod.answer(result)
        if state in {"training", "zeroizing"}:
            pod.wait_state("training")
            assert not fds or any(content(fds))
        kill_in(pod, state, victim)
    last = pod.finish()
    assert last["state"] == "failed"
    assert last["code"].startswith(CODES[victim])
    claimed, reasons = pod.verdict()
    assert claimed == "unverified"
    assert f"abandoned_{last['code']}" in reasons
    assert all(process.gone for process in pod.receipt().processes)
    assert not any(content(fds))
    for fd in fds:
        os.close(fd)


def test_a_dismissed_trainer_wipes_its_memory_before_it_exits(small_pod: Callable[..., Pod]) -> None:
    tell = '(Path(self.setup["scratch"]) / "wiping").touch()'
    line = "                from engine.worker.training import secret_patterns\n\n                with contextlib"
    patch = {TRAINER: lambda text: text.replace(line, f"                {tell}\n{line}")}
    pod = small_pod(patch, target=Target(seconds=60.0))
    pod.launch()
    pod.answer(pod.attest())
    kill_in(pod, "training", "sealer")
    pod.finish()
    _, reasons = pod.verdict()
    assert "zeroization_scratch" in reasons, "the trainer's own wipe leaves its mark there"


@pytest.mark.parametrize("state", ["attesting", "training", "zeroizing"])
def test_without_its_supervisor_every_process_ends_by_itself(state: str, pod: Pod) -> None:
    pod.launch()
    if state != "attesting":
        pod.answer(pod.attest())
    kill_in(pod, state, "supervisor")
    until = time.monotonic() + 60.0
    while (left := pod.processes()) and time.monotonic() < until:
        time.sleep(0.05)
    assert [names(process) for process in left] == []
    pod.follow()
    assert pod.named(ZEROIZE_DONE) is None


def names(process: psutil.Process) -> list[str]:
    return process.cmdline()[5:7]
