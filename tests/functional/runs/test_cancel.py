"""Ending a run early: what was released is wiped and proven so, and the machine is given back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from engine.plan import Target
from engine.store.reader import Reader
from tests.functional.runs.support import Operator, segment_state, short_plan


def test_cancelling_in_protected_training_still_zeroizes_and_proves_it(operator: Operator) -> None:
    run_id = operator.start(short_plan("protected", target=Target(seconds=60.0)))
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
def test_cancelling_outlives_the_runner_and_still_zeroizes(operator: Operator, killed: str) -> None:
    run_id = operator.start(short_plan("protected", target=Target(seconds=60.0)))
    operator.wait(run_id, lambda view: segment_state(view, "protected") == "training")
    if killed == "before":
        operator.kill_runner(run_id)
        operator.cancel(run_id)
    else:
        operator.cancel(run_id)
        time.sleep(0.5)
        operator.kill_runner(run_id)
    operator.resume(run_id)
    view = operator.finish(run_id)
    assert view.row is not None, operator.log_of(run_id)
    assert view.row["state"] == "cancelled"
    assert view.row["protectedStopReason"] == "cancelled"
    assert view.row["runtimeState"] == "zeroized"
    assert operator.processes(run_id) == []


def test_cancelling_before_the_release_needs_no_key(operator: Operator) -> None:
    run_id = operator.start(short_plan("protected", steps=5))
    operator.wait(run_id, lambda view: segment_state(view, "protected") == "launching")
    operator.cancel(run_id)
    view = operator.finish(run_id)
    assert view.row is not None
    assert view.row["state"] == "cancelled"
    assert view.row["keyState"] == "withheld"
    assert operator.processes(run_id) == []


def test_ctrl_c_in_a_headless_run_cancels_zeroizes_and_exits_130(operator: Operator) -> None:
    command = [sys.executable, "-m", "glasshouse_tui.cli", "--home", str(operator.home), "run", "--preset", "demo"]
    process = subprocess.Popen(
        [*command, "--segments", "protected", "--seconds", "60", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    run_id = ""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if (operator.home / "glasshouse.db").exists():
            with Reader(operator.home) as reader:
                runs = reader.runs()
            if runs:
                run_id = runs[0].id
                break
        time.sleep(0.2)
    operator.wait(run_id, lambda view: segment_state(view, "protected") == "training")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err.decode()
    assert json.loads(out)["state"] == "cancelled"
    assert operator.view(run_id).summary.runtime_state == "zeroized"
    assert b"Traceback" not in err
