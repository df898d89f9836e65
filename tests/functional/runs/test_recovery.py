"""Links, servers and runners that die during a run: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from engine.payload.local_files import LocalFiles
from engine.plan import Data
from engine.runner.folder import RunFolder
from engine.store.reader import Reader
from engine.store.views import RunView
from engine.store.writer import Writer
from engine.wire import TRAIN_OBSERVED
from tests.functional.runs.support import LONG, Operator, segment_state, short_plan


def _training(view: RunView, kind: str) -> bool:
    return segment_state(view, kind) == "training" and next(s for s in view.segments if s.kind == kind).steps > 0


def test_killing_the_ssh_server_twice_loses_no_step(operator: Operator) -> None:
    run_id = operator.start(short_plan("protected", target=LONG))
    operator.wait(run_id, lambda view: _training(view, "protected"))
    server = "engine.providers.local.sshd"
    for _ in range(2):
        (first,) = operator.processes(run_id, server)
        first.send_signal(signal.SIGKILL)
        first.wait(60)
        operator.until(lambda: operator.processes(run_id, server))
        known = _steps(operator.view(run_id))
        operator.wait(run_id, lambda view, known=known: _steps(view) > known + 100)  # type: ignore[misc]
    operator.hurry(run_id)
    view = operator.finish(run_id)
    assert view.row is not None, operator.log_of(run_id)
    assert view.row["clean"] is True, [check for check in view.row["checks"] if check["status"] == "failed"]
    assert view.row["protectedStopReason"] == "step_budget"
    assert view.row["protectedSteps"] == LONG.steps


def _steps(view: RunView) -> int:
    return sum(segment.steps for segment in view.segments)


def test_a_runner_that_dies_at_one_commit_after_another_leaves_nothing_undone(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data_file = tmp_path / "mine.jsonl"
    data_file.write_text('{"prompt": "Say hello.", "completion": "Hello."}\n' * 20)
    plan = short_plan("protected", steps=10, data=Data(source="file", name="mine.jsonl"))
    run_id: str = operator.die_at(
        "evidence:result", monkeypatch, lambda: operator.start(plan, LocalFiles(data=data_file))
    )
    operator.wait(run_id, lambda view: view.summary.orphaned)
    assert operator.view(run_id).summary.key == "withheld"
    data_file.unlink()
    for point in ("event:zeroize.done", "state:run:cleaning", "state:cleanup:gone"):
        operator.die_at(point, monkeypatch, lambda: operator.resume(run_id))
        assert operator.wait(run_id, lambda view: view.summary.orphaned).summary.state != "finished", point
    _leave_a_folder_of_an_ended_run(operator, "feedfeedfeed")
    operator.resume(run_id)
    view = operator.finish(run_id)
    assert view.row is not None, operator.log_of(run_id)
    assert view.row["clean"] is True, [check for check in view.row["checks"] if check["status"] == "failed"]
    for subject, states in (
        ("attestation", ["awaiting_evidence", "verified"]),
        ("key", ["released", "destroyed"]),
        ("runtime", ["running", "zeroizing", "zeroized"]),
        ("cleanup", ["terminating", "gone"]),
    ):
        assert [t.state for t in view.transitions if t.subject == subject] == states
    with Reader(operator.home) as reader:
        assert set(reader.receipts(run_id)) == {"delegation", "release", "zeroization", "run"}
        names = [event.event for event in reader.events(run_id, "runner") if event.event != TRAIN_OBSERVED]
        assert [one.ledger_state for one in reader.allocations()] == ["gone"]
    assert len(names) == len(set(names)), names
    assert list((operator.home / "runs").iterdir()) == []


def _leave_a_folder_of_an_ended_run(operator: Operator, run_id: str) -> None:
    with Writer(operator.home) as writer:
        writer.create_run(run_id, short_plan("raw"))
        writer.transition(run_id, "run", "failed", "its runner died behind this")
    folder = RunFolder(operator.home, run_id)
    folder.create()
    folder.write("run_signing.pem", b"a key")


def test_a_runner_that_dies_in_cleaning_does_not_make_a_failure_a_success(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = short_plan("raw", target=LONG)
    run_id: str = operator.die_at("state:run:cleaning", monkeypatch, lambda: operator.start(plan))
    operator.wait(run_id, lambda view: _training(view, "raw"))
    (supervisor,) = operator.processes(run_id, "supervisor --dir")
    supervisor.send_signal(signal.SIGKILL)
    operator.wait(run_id, lambda view: view.summary.orphaned)
    operator.resume(run_id)
    view = operator.finish(run_id)
    assert view.summary.state == "failed"
    assert view.summary.reason.startswith("supervisor_died: ")


def test_a_machine_with_an_unattended_supervisor_is_not_free(operator: Operator) -> None:
    first = operator.start(short_plan("raw", target=LONG))
    operator.wait(first, lambda view: _training(view, "raw"))
    operator.kill_runner(first)
    second = operator.start(short_plan("raw", steps=5))
    waiting = operator.wait(second, lambda view: view.summary.reason != "")
    assert waiting.summary.state == "queued"
    assert first in waiting.summary.reason
    operator.resume(first)
    operator.hurry(first)
    one, two = operator.finish(first), operator.finish(second)
    assert one.row is not None
    assert two.row is not None
    assert one.row["clean"] is True
    assert two.row["clean"] is True
    begun = [t.at for t in two.transitions if t.subject == "run" and t.state == "allocating"]
    assert begun[0] >= str(one.summary.finished_at)


def test_a_trainer_killed_in_the_protected_segment_is_never_called_zeroized(operator: Operator) -> None:
    run_id = operator.start(short_plan("protected", target=LONG))
    operator.wait(run_id, lambda view: _training(view, "protected"))
    operator.trainer(run_id).send_signal(signal.SIGKILL)
    view = operator.finish(run_id)
    assert view.row is not None
    assert view.row["state"] == "failed"
    assert "trainer_" in view.row["reason"]
    assert view.row["runtimeState"] == "unverified"
    assert view.row["clean"] is False
    assert view.row["protectedSteps"] > 0
    assert operator.processes(run_id) == []


def test_a_supervisor_killed_ends_in_an_honest_failure(operator: Operator) -> None:
    run_id = operator.start(short_plan("protected", target=LONG))
    operator.wait(run_id, lambda view: _training(view, "protected"))
    (supervisor,) = operator.processes(run_id, "supervisor --dir")
    supervisor.send_signal(signal.SIGKILL)
    view = operator.finish(run_id)
    assert view.row is not None
    assert view.row["state"] == "failed"
    assert "supervisor_died" in view.row["reason"]
    assert (view.row["keyState"], view.row["runtimeState"]) == ("released", "unverified")
    assert view.summary.cleanup == "gone"
    assert operator.processes(run_id) == []


def test_a_run_whose_private_folder_is_gone_ends_in_an_honest_failure(operator: Operator) -> None:
    run_id = operator.start(short_plan("raw", target=LONG))
    operator.wait(run_id, lambda view: _training(view, "raw"))
    operator.kill_runner(run_id)
    shutil.rmtree(operator.home / "runs" / run_id)
    operator.resume(run_id)
    view = operator.finish(run_id)
    assert view.row is not None, operator.log_of(run_id)
    assert view.row["state"] == "failed"
    assert "run_folder_missing" in view.row["reason"]
    assert view.summary.cleanup == "gone"
    assert operator.processes(run_id) == []


def test_a_second_runner_for_one_run_is_turned_away(operator: Operator) -> None:
    from engine.errors import UsageError

    run_id = operator.start(short_plan("raw", target=LONG))
    operator.wait(run_id, lambda view: _training(view, "raw"))
    with pytest.raises(UsageError) as caught:
        operator.resume(run_id)
    assert caught.value.code == "run_locked"
    operator.hurry(run_id)
    operator.finish(run_id)


def test_two_runs_on_one_machine_never_run_at_once(operator: Operator) -> None:
    first = operator.start(short_plan("raw", target=LONG))
    operator.wait(first, lambda view: _training(view, "raw"))
    second = operator.start(short_plan("raw", steps=5))
    assert operator.wait(second, lambda view: view.summary.reason != "").summary.state == "queued"
    operator.hurry(first)
    one, two = operator.finish(first), operator.finish(second)
    assert one.summary.finished_at is not None
    begun = [t.at for t in two.transitions if t.subject == "run" and t.state == "allocating"]
    assert begun[0] >= one.summary.finished_at


@pytest.mark.parametrize("what", ["the home", "the database", "the run's folder"])
def test_a_run_whose_home_is_deleted_ends_at_once_and_leaves_a_last_word(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    run_id = operator.start(short_plan("protected", target=LONG))
    operator.wait(run_id, lambda view: _training(view, "protected"))
    runner = operator.runner(run_id)
    if what == "the run's folder":
        shutil.rmtree(RunFolder(operator.home, run_id).path)
        view = operator.finish(run_id)
        assert (view.summary.state, view.summary.reason.partition(":")[0]) == ("failed", "run_folder_missing")
        assert view.summary.cleanup == "gone"
        return
    if what == "the home":
        operator.home.rename(tmp_path / "moved")
    else:
        (operator.home / "glasshouse.db").unlink()
    runner.wait(300)
    assert operator.processes(run_id, "supervisor") == []
    words = state / "glasshouse" / "last-words.log"
    text = words.read_text()
    assert f"run {run_id}: {'home' if what == 'the home' else 'database'}_gone" in text
    assert "released glasshouse-" in text or "It holds no allocation: released." in text
    assert words.stat().st_mode & 0o777 == 0o600
    assert operator.home.exists() == (what != "the home")


@pytest.mark.parametrize("state", ["allocating", "launching", "training"])
def test_a_home_that_is_removed_file_by_file_is_the_reason_whatever_failed_first(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run_id = operator.start(short_plan("protected", target=LONG))
    runner = operator.runner(run_id)
    operator.wait(run_id, lambda view: state in (view.summary.state, segment_state(view, "protected")))
    while operator.home.exists():
        shutil.rmtree(operator.home, ignore_errors=True)
    runner.wait(300)
    assert operator.processes(run_id, "supervisor") == []
    words = (tmp_path / "state" / "glasshouse" / "last-words.log").read_text()
    assert f"run {run_id}: home_gone" in words or f"run {run_id}: database_gone" in words
    assert not operator.home.exists()
