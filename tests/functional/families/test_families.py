"""Every family trains raw and protected with equal losses, which are those of transformers with peft alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.payload.build import build_payload
from engine.payload.inputs import plan_with_digests
from engine.payload.local_files import LocalFiles
from engine.payload.model import describe_model
from engine.payload.targets import resolved_targets
from engine.plan import Model, Plan, Target, dump_plan, preset
from engine.worker.isolation.binding import BIND_NOW
from engine.worker.training.numerics import ENVIRONMENT
from tests.functional.families.made import FAMILIES, make_folder
from tests.needs import LOCAL_EXTRA

pytest.importorskip("torch", reason=LOCAL_EXTRA)
pytest.importorskip("transformers", reason=LOCAL_EXTRA)
pytest.importorskip("peft", reason=LOCAL_EXTRA)
pytestmark = pytest.mark.training

HERE = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("trainers.py")


def plan_for(*targets: str, **training: Any) -> Plan:
    demo = preset("demo")
    settings = {"batch": 2, "settling_steps": 2, "checkpoint_every": 3, "max_length": 48, **training}
    return msgspec.structs.replace(
        demo,
        model=Model(source="folder", name="model"),
        training=msgspec.structs.replace(demo.training, **settings),
        lora=msgspec.structs.replace(demo.lora, targets=targets),
        target=Target(steps=6),
        evaluation=None,
    )


def trained(plan: Plan, model: Path, work: Path) -> dict[str, Any]:
    """What the program reports of the plan's payload, with the names in its initial adapter."""
    plan = plan_with_digests(plan, LocalFiles(model=model))
    payload = build_payload(plan, LocalFiles(model=model))
    (work / "payload").mkdir(parents=True)
    for name, content in payload.files.items():
        (work / "payload" / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    (work / "plan.json").write_text(json.dumps(dump_plan(plan)))
    environment = {**os.environ, **ENVIRONMENT, **BIND_NOW, "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(work), str(model)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def require_same_work(found: dict[str, Any], modules: set[str]) -> None:
    raw, protected = found["raw"], found["protected"]
    assert (raw["status"], protected["status"]) == (0, 0)
    assert "seccomp" in protected["enforced"]
    assert len(raw["losses"]) == 6
    assert len(set(raw["losses"])) == 6
    assert raw["losses"] == protected["losses"] == found["plain"]
    assert raw["digest"] == protected["digest"]
    assert {*protected["patterns"]} >= {"weights", "adapter", "moments"}
    names = {f"base_model.model.{module}.lora_{side}.weight" for module in modules for side in "AB"}
    assert {*raw["names"]} == {*protected["names"]} == names


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_the_same_raw_protected_and_by_the_libraries_alone(family: str, tmp_path: Path) -> None:
    model = make_folder(family, tmp_path / "model", shards=family in {"llama", "mixtral"})
    plan = plan_for("all-linear")
    linears = describe_model(plan, model).linears
    require_same_work(trained(plan, model, tmp_path / "work"), set(linears))


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_oss"])
def test_gradient_checkpointing_changes_no_loss(family: str, tmp_path: Path) -> None:
    model = make_folder(family, tmp_path / "model")
    plan = plan_for("attention", gradient_checkpointing=True)
    description = describe_model(plan, model)
    endings = resolved_targets(description, ("attention",))
    modules = {name for name in description.linears if name.rpartition(".")[2] in endings}
    assert modules < set(description.linears) or family == "gpt_oss"
    require_same_work(trained(plan, model, tmp_path / "work"), modules)


def test_bfloat16_weights_are_trained_in_bfloat16(tmp_path: Path) -> None:
    model = make_folder("mixtral", tmp_path / "model")
    found = trained(plan_for("q_proj", "v_proj", dtype="bfloat16"), model, tmp_path / "work")
    assert found["raw"]["losses"] == found["protected"]["losses"] != found["plain"]
    assert found["raw"]["losses"] == pytest.approx(found["plain"], rel=0.01)
