"""What takes long to find out is found out while the run is queued: before its allocation is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.payload.local_files import LocalFiles
from engine.plan import Data
from engine.runner.lifecycle import BUILDING
from tests.functional.runs.renter import Renter

LINE = 1024 * 1024 - 1


@pytest.mark.parametrize("segments", ["raw", "protected"])
def test_data_that_turns_out_to_be_useless_rents_nothing(renter: Renter, tmp_path: Path, segments: str) -> None:
    """The file is too large to be tokenised before the run is entered; no answer lies within the maximum length."""
    data = tmp_path / "large.jsonl"
    sample = json.dumps({"prompt": "far too long " * 64, "completion": "never reached"})
    data.write_text((sample.ljust(LINE) + "\n") * 17)
    plan = renter.plan(segments, changes={"data": Data(source="file", name="own-data")})  # type: ignore[arg-type]
    view = renter.finish(renter.start(plan, LocalFiles(data=data)))
    assert view.summary.state == "failed"
    assert view.summary.reason.startswith("data_nothing_to_learn"), view.summary.reason
    entered = [(one.state, one.reason) for one in view.transitions if one.subject == "run"]
    assert ("queued", BUILDING) in entered
    assert {state for state, _ in entered} == {"queued", "cleaning", "failed"}
    assert (renter.ledger(), renter.fake.ever()) == ([], [])
