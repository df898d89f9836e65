"""A pair on a user's own model and data ends clean, and its row can be recomputed without this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load

from engine.payload.build import build_payload
from engine.payload.local_files import LocalFiles
from engine.plan import dump_plan, load_plan
from engine.store.reader import Reader
from engine.worker.training.numerics import ENVIRONMENT
from glasshouse_tui.commands.plan_options import RunOptions, plan_from_options
from tests.functional.families.made import make_folder
from tests.functional.runs import rebuilt as program
from tests.functional.runs.support import Operator
from tests.needs import LOCAL_EXTRA

pytest.importorskip("torch", reason=LOCAL_EXTRA)
pytest.importorskip("transformers", reason=LOCAL_EXTRA)

pytestmark = pytest.mark.training

TURNS = [
    [("user", f"What is {n} plus {n}?"), ("assistant", f"{2 * n}, since {n} and {n} make that.")] for n in range(18)
] + [
    [("system", "Answer in one word."), ("user", "Is water wet?"), ("assistant", "Yes.")],
    [("user", "Say a."), ("assistant", "a"), ("user", "And b?"), ("assistant", "b, as you ask.")],
]


def refit(family: str, tmp_path: Path, **options: Any) -> tuple[Path, Path, RunOptions]:
    """A data file, a model folder of the family, and the options of a short run on them."""
    data = tmp_path / "chats.jsonl"
    chats = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in TURNS]
    data.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    folder = make_folder(family, tmp_path / "model")
    chosen = {
        "epochs": 3, "batch": 2, "grad_accum": 2, "lr": 0.01, "lr_schedule": "cosine", "lr_warmup": 2,
        "eval_split": 10.0, "settling": 2, "checkpoint_every": 5,
    }  # fmt: skip
    return data, folder, RunOptions(data=data, model=str(folder), public_data=True, **{**chosen, **options})


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_row_is_what_transformers_and_peft_compute_from_its_plan(
    torch_operator: Operator, family: str, tmp_path: Path
) -> None:
    data, folder, options = refit(family, tmp_path)
    inputs = plan_from_options(options)
    run_id = torch_operator.start(inputs.plan, inputs.files)
    row = torch_operator.finish(run_id).row
    assert row is not None
    assert row["clean"] is True, [check for check in row["checks"] if check["status"] == "failed"]
    assert row["rawUpdates"] == -(-3 * 18 // 4)
    with Reader(torch_operator.home) as reader:
        plan = load_plan(reader.run(run_id).plan)
        series = {kind: reader.series(run_id, kind).losses for kind in ("raw", "protected")}
    plan_file = tmp_path / "plan.json"
    plan_file.write_text(json.dumps(dump_plan(plan)))
    done = subprocess.run(
        [sys.executable, program.__file__, str(plan_file), str(data), str(folder)],
        capture_output=True, text=True, check=False,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    tokens = load(bytes(build_payload(plan, LocalFiles(data=data, model=folder)).files["tokens.safetensors"]))
    assert tokens["input_ids"].tolist() == found["ids"]
    assert tokens["labels"].tolist() == found["labels"]
    assert list(series["raw"]) == list(series["protected"]) == found["losses"]
    for kind in ("raw", "protected"):
        assert row[f"{kind}HeldOutLossBefore"] == found["before"]
        assert row[f"{kind}HeldOutLossAfter"] == found["after"]
