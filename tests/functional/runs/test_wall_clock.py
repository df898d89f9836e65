"""A real run whose operator's wall clock is set forward and back while it trains."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.functional.runs.support import LONG, Operator, checks_of, segment_state, short_plan

SHIM = Path(__file__).with_name("wall_clock.c")
HOUR = 3600


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose number of seconds shifts the wall clock of every process that is started with it."""
    if shutil.which("cc") is None:
        pytest.skip("cc is missing: install gcc")
    library, shift = tmp_path / "wall_clock.so", tmp_path / "shift"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    if (compiled := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"cc cannot build a shared library: {compiled.stderr[:200]}")
    shift.write_text("0")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("WALL_CLOCK", str(shift))
    return shift


def test_a_wall_clock_set_during_a_run_changes_no_duration_and_the_row_says_so(operator: Operator, clock: Path) -> None:
    run_id = operator.start(short_plan("protected", target=LONG))
    operator.wait(run_id, lambda view: segment_state(view, "protected") == "training")
    clock.write_text(str(24 * HOUR))
    operator.hurry(run_id)
    operator.wait(run_id, lambda view: segment_state(view, "protected") != "training")
    clock.write_text(str(-24 * HOUR))
    view = operator.finish(run_id)
    row = view.row
    assert row is not None, operator.log_of(run_id)
    assert row["finishedAt"] < row["startedAt"], "the clock of the runner was not set"
    assert 0 < row["durationSec"] < HOUR
    assert row["clean"] is False
    assert checks_of(view)["times_consistent"] == "failed"
    assert {name for name, status in checks_of(view).items() if status == "failed"} == {"times_consistent"}
    # The small training is not the shipped worker, which alone `verify` knows.
    failed = [one for one in operator.verified(run_id).proofs if one.status == "failed"]
    assert [one.code for one in failed] in ([], ["measurement_unknown"]), failed
