"""Data that is found to be useless rents nothing, however large it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.payload.local_files import LocalFiles
from engine.plan import Data
from engine.store.reader import Reader
from tests.functional.runs.renter import Renter

LINE = 1024 * 1024 - 1


@pytest.mark.parametrize("segments", ["raw", "protected"])
def test_data_that_turns_out_to_be_useless_rents_nothing(renter: Renter, tmp_path: Path, segments: str) -> None:
    """No answer lies within the maximum length: no run is entered."""
    data = tmp_path / "large.jsonl"
    sample = json.dumps({"prompt": "far too long " * 64, "completion": "never reached"})
    data.write_text((sample.ljust(LINE) + "\n") * 17)
    plan = renter.plan(segments, changes={"data": Data(source="file", name="own-data")})  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        renter.start(plan, LocalFiles(data=data))
    assert caught.value.code == "data_nothing_to_learn"
    with Reader(renter.home) as reader:
        assert not reader.exists() or not list(reader.unfinished())
    assert (renter.ledger(), renter.fake.ever()) == ([], [])
