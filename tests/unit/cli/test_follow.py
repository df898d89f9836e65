"""Following a run, and handling Ctrl-C meanwhile."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

from engine.errors import RunError
from glasshouse_tui.commands import follow
from glasshouse_tui.commands.follow import Interrupts, exit_code, start_and_follow, watch_run

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Scene


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    """Fail a test whose wait never ends."""

    def expired(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError("the waiting did not end")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Run `action` in a thread during the block, and re-raise its exception."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()
    if raised:
        raise raised[0]


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until `condition` is true, at most a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("state", "clean", "code"),
    [
        ("finished", True, 0),
        ("finished", False, 3),
        ("failed", False, 1),
        ("cancelled", False, 130),
    ],
)
def test_a_final_run_determines_the_exit_code(scene: Scene, state: Any, clean: bool, code: int) -> None:
    scene.create()
    scene.finish(clean=clean, state=state)
    assert exit_code(scene.view()) == code


def test_a_run_is_followed_to_its_row(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    scene.create()
    scene.session.json = True

    def runner() -> None:
        scene.move("run", "running")
        scene.move("segment:raw", "training")
        scene.train("raw", [2.5] * 3)
        time.sleep(0.3)
        scene.finish(clean=True, overheadPct=0.5)

    with meanwhile(runner):
        assert start_and_follow(scene.session, lambda: scene.run_id) == 0
    written = capfd.readouterr()
    assert json.loads(written.out)["overheadPct"] == 0.5
    lines = written.err.splitlines()
    assert lines[0] == f"run {scene.run_id}"
    assert "run         running" in lines
    assert "run         finished" in lines
    assert sum("steps/s" in line for line in lines) == 1


def test_ctrl_c_requests_one_cancel_waits_for_the_end_and_exits_130(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    scene.create()
    scene.session.json = True
    requests: list[str] = []

    def runner() -> None:
        wait_for(lambda: scene.view().summary.state == "running")
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: scene.writer.pending_requests(scene.run_id))
        requests.extend(request.kind for request in scene.writer.pending_requests(scene.run_id))
        scene.move("run", "cleaning")
        time.sleep(0.2)
        scene.finish(clean=False, state="cancelled")

    with meanwhile(runner):
        scene.move("run", "running")
        assert start_and_follow(scene.session, lambda: scene.run_id) == 130
    written = capfd.readouterr()
    assert requests == ["cancel"]
    assert json.loads(written.out)["clean"] is False
    assert "Cancelling: waiting for the run to zeroize" in written.err
    assert "run         cancelled" in written.err


def test_a_termination_signal_cancels_as_ctrl_c_does(scene: Scene) -> None:
    scene.create()

    def runner() -> None:
        wait_for(lambda: signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: scene.writer.pending_requests(scene.run_id))
        scene.finish(clean=False, state="cancelled")

    with meanwhile(runner):
        assert start_and_follow(scene.session, lambda: scene.run_id) == 130


def test_a_second_ctrl_c_stops_waiting_and_reports_that_the_clean_up_continues(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    scene.create()
    scene.session.json = True

    def person() -> None:
        wait_for(lambda: signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: scene.writer.pending_requests(scene.run_id))
        time.sleep(follow.SAME_SIGNAL_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(person):
        assert start_and_follow(scene.session, lambda: scene.run_id) == 130
    written = capfd.readouterr()
    assert "the clean-up continues" in written.err
    row = json.loads(written.out)
    assert (row["id"], row["clean"], row["state"]) == (scene.run_id, None, "queued")


def test_a_duplicated_ctrl_c_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "SAME_SIGNAL_SECONDS", 60.0)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert interrupts.count == 1


def test_a_second_ctrl_c_aborts_a_long_start() -> None:
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        interrupts.starting = True
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(follow.SAME_SIGNAL_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)


def test_signal_handlers_are_restored_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_ctrl_c_in_watch_does_not_cancel_the_run(scene: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    scene.create()

    def person() -> None:
        wait_for(lambda: signal.getsignal(signal.SIGTERM) != signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)

    with meanwhile(person):
        assert watch_run(scene.session, scene.run_id) == 130
    assert scene.writer.pending_requests(scene.run_id) == []
    assert "the run continues" in capfd.readouterr().err


def test_a_dead_runner_is_reported(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "ORPHAN_GRACE_SECONDS", 0.3)
    scene.create(owned=False)
    scene.move("run", "running")
    with pytest.raises(RunError) as caught:
        watch_run(scene.session, scene.run_id)
    assert caught.value.code == "runner_gone"
    assert f"glasshouse resume {scene.run_id}" in caught.value.hint


def test_a_runner_gets_time_to_start(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "ORPHAN_GRACE_SECONDS", 0.2)
    scene.create(owned=False)

    def runner() -> None:
        time.sleep(0.6)
        scene.writer.claim_runner(scene.run_id, os.getpid())
        time.sleep(0.8)
        scene.finish(clean=True)

    with meanwhile(runner):
        assert watch_run(scene.session, scene.run_id) == 0
