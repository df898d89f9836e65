"""The user's own data and model, either order, either target, and the resulting adapter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import DataError, PlanError
from engine.payload.build import build_payload
from engine.payload.local_files import LocalFiles
from engine.plan import Data, Model, Target, load_plan, preset
from engine.store.reader import Reader
from engine.system.resources import data_path
from tests.functional.runs.support import LONG, Operator, segment_state, short_plan

SAMPLES = [
    {"messages": [{"role": "user", "content": f"What is {n} plus {n}?"}, {"role": "assistant", "content": str(2 * n)}]}
    for n in range(20)
] + [{"messages": [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello."}]}]


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """A small data file."""
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(sample) for sample in SAMPLES) + "\n")
    return path


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A model folder as a user has one: config, tokenizer, weights."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    files = build_payload(preset("demo")).files
    for name, target in (("config.json", "config.json"), ("weights.safetensors", "model.safetensors")):
        content = files[name]
        assert isinstance(content, bytes)
        (folder / target).write_bytes(content)
    (folder / "tokenizer.json").write_bytes(data_path("tiny_model", "tokenizer.json").read_bytes())
    return folder


def test_a_pair_protected_first_by_seconds_is_clean_with_unequal_steps(operator: Operator) -> None:
    view = operator.finish(operator.start(short_plan(order="protected-first", target=Target(seconds=2.0))))
    row = view.row
    assert row is not None, "no row"
    assert [segment.kind for segment in view.segments] == ["protected", "raw"]
    assert row["order"] == "protected-first"
    for kind in ("raw", "protected"):
        assert row[f"{kind}StopReason"] == "target_seconds"
        assert row[f"{kind}ElapsedSec"] >= 2.0
    assert row["clean"] is True, [check for check in row["checks"] if check["status"] == "failed"]


def test_private_data_on_a_local_model_runs_protected_and_its_adapter_loads_in_peft(
    torch_operator: Operator, data_file: Path, model_folder: Path, tmp_path: Path
) -> None:
    plan = short_plan(
        "protected", steps=10, model=Model(source="folder", name="my-model"),
        data=Data(source="file", name="mine.jsonl", public=False),
    )  # fmt: skip
    operator = torch_operator
    run_id = operator.start(plan, LocalFiles(data=data_file, model=model_folder))
    row = operator.finish(run_id).row
    assert row is not None
    assert row["clean"] is True, [check for check in row["checks"] if check["status"] == "failed"]
    assert (row["rawSteps"], row["overheadPct"]) == (None, None)
    out = tmp_path / "adapter"
    command = [sys.executable, "-m", "glasshouse_tui.cli", "--home", str(operator.home), "adapter", run_id, "-o"]
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert _loaded_sum(model_folder, out) > 0.0
    subprocess.run([*command, str(tmp_path / "merged"), "--merged"], check=True, capture_output=True)
    assert (tmp_path / "merged" / "model.safetensors").is_file(), "the run's folder is remembered"
    (model_folder / "tokenizer.json").write_text("{}")
    refused = subprocess.run(
        [*command, str(tmp_path / "other"), "--with-base", "--json"], capture_output=True, text=True, check=False
    )
    assert json.loads(refused.stdout)["error"]["code"] == "base_differs"
    assert not (tmp_path / "other").exists()
    assert (out / "tokenizer.json").read_bytes() != b"{}", "the tokenizer of the run was kept"


def _loaded_sum(model_folder: Path, adapter: Path) -> float:
    """The sum of all |lora_B| after peft loaded the adapter onto the base model, in a separate process."""
    program = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2])
print(sum(float(p.detach().abs().sum()) for n, p in model.named_parameters() if "lora_B" in n))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(model_folder), str(adapter)], check=True, capture_output=True, text=True
    )
    return float(ran.stdout.strip().splitlines()[-1])


def test_a_pair_on_private_data_is_refused_before_anything_starts(operator: Operator, data_file: Path) -> None:
    raw: dict[str, Any] = msgspec.to_builtins(short_plan())
    raw["data"] |= {"source": "file", "name": "mine.jsonl", "public": False}
    with pytest.raises(PlanError) as caught:
        operator.start(load_plan(raw), LocalFiles(data=data_file))
    assert caught.value.code == "data_not_public"
    assert not (operator.home / "glasshouse.db").exists()


def test_a_stand_in_keeps_the_shape_and_none_of_the_words(operator: Operator, data_file: Path) -> None:
    data = Data(source="file", name="mine.jsonl", public=False, stand_in=True)
    run_id = operator.start(short_plan("raw", steps=3, data=data), LocalFiles(data=data_file))
    row = operator.finish(run_id).row
    assert row is not None
    assert row["state"] == "finished"
    with Reader(operator.home) as reader:
        assert reader.evidence(run_id)["payload"]["samples"] == len(SAMPLES)


def test_a_bad_line_is_named_and_nothing_is_left_behind(operator: Operator, data_file: Path) -> None:
    data_file.write_text(data_file.read_text() + '{"messages": []}\n')
    plan = short_plan("raw", data=Data(source="file", name="mine.jsonl"))
    with pytest.raises(DataError) as caught:
        operator.start(plan, LocalFiles(data=data_file))
    assert str(len(SAMPLES) + 1) in caught.value.message
    assert not (operator.home / "runs").exists()


def test_data_changed_after_the_start_fails_the_run(operator: Operator, data_file: Path) -> None:
    blocker = operator.start(short_plan("raw", target=LONG))
    operator.wait(blocker, lambda view: segment_state(view, "raw") == "training")
    run_id = operator.start(
        short_plan("raw", steps=3, data=Data(source="file", name="mine.jsonl")), LocalFiles(data=data_file)
    )
    data_file.write_text(data_file.read_text() + json.dumps(SAMPLES[0]) + "\n")
    operator.hurry(blocker)
    row = operator.finish(run_id).row
    assert row is not None
    assert row["state"] == "failed"
    assert "data_changed" in row["reason"]
    operator.finish(blocker)


def test_an_injected_overhead_is_never_clean_and_each_segment_stops_at_its_seconds(
    torch_operator: Operator,
) -> None:
    plan = short_plan(target=Target(seconds=2.0), inject_overhead_pct=100.0)
    view = torch_operator.finish(torch_operator.start(plan))
    row = view.row
    assert row is not None
    assert row["clean"] is False
    assert [check["name"] for check in row["checks"] if check["status"] == "failed"] == ["nothing_injected"]
    rates = {kind: row[f"{kind}Steps"] / row[f"{kind}ElapsedSec"] for kind in ("raw", "protected")}
    assert row["overheadPct"] == pytest.approx((1 - rates["protected"] / rates["raw"]) * 100, abs=0.01)
    with Reader(torch_operator.home) as reader:
        raw, protected = (reader.series(view.summary.id, kind).nanos for kind in ("raw", "protected"))
    for kind, nanos in (("raw", raw), ("protected", protected)):
        assert row[f"{kind}StopReason"] == "target_seconds"
        assert sum(nanos[:-1]) / 1e9 < 2.0 <= sum(nanos) / 1e9
