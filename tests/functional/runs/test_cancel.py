"""Cancelling a run: what was released is wiped with proof, and the allocation is released."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from engine.store.reader import Reader
from tests.functional.runs.support import LONG, RUN_SECONDS, Operator, segment_state, short_plan


def test_cancelling_in_protected_training_still_zeroizes_and_proves_it(operator: Operator) -> None:
    run_id = operator.start(short_plan("protected", target=LONG))
    operator.wait(run_id, lambda view: segment_state(view, "protected") == "training")
    operator.cancel(run_id)
    view = operator.finish(run_id)
    assert view.row is not None
    assert view.row["state"] == "cancelled"
    assert view.row["protectedStopReason"] == "cancelled"
    assert view.row["runtimeState"] == "zeroized"
    assert view.row["clean"] is False
    assert view.summary.cleanup == "gone"
    assert operator.processes(run_id) == []


@pytest.mark.parametrize("killed", ["before", "after"])
def test_cancelling_outlives_the_runner_and_still_zeroizes(
    operator: Operator, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = "event:train.started" if killed == "before" else "event:train.finished"
    plan = short_plan("protected", target=LONG)
    run_id: str = operator.die_at(point, monkeypatch, lambda: operator.start(plan))
    if killed == "before":
        operator.wait(run_id, lambda view: view.summary.orphaned)
        operator.cancel(run_id)
    else:
        operator.wait(run_id, lambda view: segment_state(view, "protected") == "training")
        operator.cancel(run_id)
        operator.wait(run_id, lambda view: view.summary.orphaned)
    operator.resume(run_id)
    view = operator.finish(run_id)
    assert view.row is not None, operator.log_of(run_id)
    assert view.row["state"] == "cancelled"
    assert view.row["protectedStopReason"] == "cancelled"
    assert view.row["runtimeState"] == "zeroized"
    assert operator.processes(run_id) == []


def test_cancelling_before_the_release_needs_no_key(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = short_plan("protected", steps=5)
    run_id: str = operator.hold_at("event:segment.state", monkeypatch, lambda: operator.start(plan))
    with operator.held(run_id):
        assert segment_state(operator.view(run_id), "protected") == "launching"
        operator.cancel(run_id)
    view = operator.finish(run_id)
    assert view.row is not None
    assert view.row["state"] == "cancelled"
    assert view.row["keyState"] == "withheld"
    assert operator.processes(run_id) == []


def test_ctrl_c_in_a_headless_run_cancels_zeroizes_and_exits_130(operator: Operator) -> None:
    command = [sys.executable, "-m", "glasshouse_tui.cli", "--home", str(operator.home), "run", "--preset", "demo"]
    process = subprocess.Popen(
        [*command, "--segments", "protected", "--steps", str(LONG.steps), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    operator.until((operator.home / "glasshouse.db").exists)
    with Reader(operator.home) as reader:
        operator.until(reader.runs)
        run_id = reader.runs()[0].id
    operator.wait(run_id, lambda view: segment_state(view, "protected") == "training")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 130, err.decode()
    assert json.loads(out)["state"] == "cancelled"
    assert operator.view(run_id).summary.runtime_state == "zeroized"
    assert b"Traceback" not in err
