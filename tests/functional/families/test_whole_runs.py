"""Whole pairs of `run --model FOLDER --data FILE`, to a clean row: among them a model whose weights are converted."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.system.resources import data_path
from tests.functional.command_line.conftest import CommandLine
from tests.functional.families.made import make_folder
from tests.needs import LOCAL_EXTRA

pytest.importorskip("torch", reason=LOCAL_EXTRA)
pytest.importorskip("transformers", reason=LOCAL_EXTRA)
pytestmark = [pytest.mark.training, pytest.mark.xdist_group("families")]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral"])
def test_a_pair_on_a_folder_of_the_family_ends_clean(family: str, tmp_path: Path) -> None:
    model = make_folder(family, tmp_path / "model", shards=True)
    lines = data_path("sample_corpus.jsonl").read_text().splitlines(keepends=True)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(lines[:100]))
    cli = CommandLine(tmp_path / "home")
    done = cli("run", "--model", model, "--data", data, "--public-data", "--steps", "20", "--yes", "--json")
    assert done.code == 0, done.out + done.err
    row = done.document
    assert row["clean"], [check for check in row["checks"] if check["status"] != "passed"]
    assert row["rawFinalLoss"] == row["protectedFinalLoss"]
    assert row["rawTensorDigest"] == row["protectedTensorDigest"]
    assert row["runtimeState"] == "zeroized"
