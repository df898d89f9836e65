"""From options to a plan."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.errors import DataError, GlasshouseError, PlanError, UsageError
from engine.payload.local_files import NO_FILES
from engine.plan import Plan, preset, presets
from engine.recipe import OWN_LORA, OWN_TRAINING
from glasshouse_tui.commands.plan_options import RunOptions, plan_from_options


def _refusal(options: RunOptions) -> GlasshouseError:
    with pytest.raises(GlasshouseError) as caught:
        plan_from_options(options)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


def test_a_preset_alone_is_the_preset() -> None:
    inputs = plan_from_options(RunOptions(preset="demo"))
    assert inputs.plan == preset("demo")
    assert inputs.files == NO_FILES


def test_options_replace_a_presets_fields_one_by_one() -> None:
    plan = plan_from_options(
        RunOptions(
            preset="demo",
            label="mine",
            steps=7,
            order="protected-first",
            segments="pair",
            seed=3,
            lr=0.5,
            lora_r=4,
            lora_alpha=9,
            batch=2,
            max_length="32",
            settling=1,
            checkpoint_every=5,
            challenge="buyer 7",
            max_cost=2.0,
        )
    ).plan
    demo = preset("demo")
    assert (plan.label, plan.target.steps, plan.order, plan.seed) == ("mine", 7, "protected-first", 3)
    assert (plan.lora.r, plan.lora.alpha, plan.lora.targets) == (4, 9, demo.lora.targets)
    training = plan.training
    assert (training.learning_rate, training.batch, training.max_length) == (0.5, 2, 32)
    assert (training.settling_steps, training.checkpoint_every) == (1, 5)
    assert training.grad_clip == demo.training.grad_clip
    assert (plan.challenge, plan.provider.max_cost, plan.model) == ("buyer 7", 2.0, demo.model)


def test_seconds_replace_a_step_budget() -> None:
    target = plan_from_options(RunOptions(preset="demo", seconds=2.5)).plan.target
    assert (target.seconds, target.steps) == (2.5, None)


def test_changes_to_a_published_preset_are_marked_as_ours() -> None:
    options = RunOptions(preset="7b-15m", provider="local", lr=0.5, order="raw-first", seed=1)
    plan = plan_from_options(options).plan
    before = presets()["7b-15m"].ours
    assert plan.ours[: len(before)] == before
    added = set(plan.ours) - set(before)
    assert {"training.learningRate", "order", "provider.name", "provider.gpus"} <= added
    assert "seed" in before
    assert plan.ours.count("seed") == 1


def test_both_targets_at_once_are_refused() -> None:
    assert "--seconds and --steps" in _refusal(RunOptions(preset="demo", seconds=1, steps=1)).message


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(preset="demo", steps=0),
        RunOptions(preset="demo", seconds=0),
        RunOptions(preset="demo", seconds=-1),
        RunOptions(preset="demo", seconds=math.nan),
        RunOptions(preset="demo", seconds=math.inf),
        RunOptions(preset="demo", lr=0),
        RunOptions(preset="demo", lora_r=0),
        RunOptions(preset="demo", settling=-1),
        RunOptions(preset="demo", seed=-1),
        RunOptions(preset="demo", label=" "),
        RunOptions(preset="demo", challenge=""),
        RunOptions(preset="demo", max_cost=0),
    ],
)
def test_invalid_numbers_are_refused(options: RunOptions) -> None:
    assert isinstance(_refusal(options), PlanError)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    error = _refusal(RunOptions(preset="nope"))
    assert error.code == "preset_unknown"
    for name in presets():
        assert name in error.hint


def test_no_target_is_a_usage_error_that_names_the_presets() -> None:
    assert "demo" in _refusal(RunOptions()).hint
    assert "demo" in _refusal(RunOptions(model="glasshouse/tiny-qwen2")).hint


def test_a_target_alone_trains_the_tiny_model() -> None:
    plan = plan_from_options(RunOptions(steps=5)).plan
    assert (plan.model, plan.preset, plan.ours, plan.target.steps) == (preset("demo").model, None, (), 5)


def test_an_existing_folder_is_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    inputs = plan_from_options(RunOptions(model=str(folder), steps=5))
    assert (inputs.plan.model.source, inputs.plan.model.name) == ("folder", "own-model")
    assert inputs.plan.label == "own-model"
    assert inputs.files.model == folder
    assert "no revision" in _refusal(RunOptions(model=str(folder), revision="a" * 40, steps=5)).message


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", "nowhere/", ""])
def test_a_missing_path_is_a_missing_model_folder(name: str) -> None:
    error = _refusal(RunOptions(model=name, steps=5))
    assert isinstance(error, DataError)
    assert error.code == "model_missing"
    assert "model folder" in error.message


def test_a_file_is_not_a_model_folder(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    assert _refusal(RunOptions(model=str(file), steps=5)).code == "model_missing"


def test_a_hub_model_needs_a_full_commit_unless_a_preset_pins_it() -> None:
    assert _refusal(RunOptions(model="someone/model", steps=5)).code == "model_missing"
    assert "could change" in _refusal(RunOptions(model="someone/model", revision="main", steps=5)).message
    inputs = plan_from_options(RunOptions(model="someone/model", revision="a" * 40, steps=5)).plan
    assert (inputs.model.source, inputs.model.revision, inputs.label) == ("hub", "a" * 40, "model")
    pinned = plan_from_options(RunOptions(model="Qwen/Qwen2.5-0.5B-Instruct", steps=5)).plan
    assert pinned.model == presets()["0.5b-15m"].model


def test_private_data_runs_raw_only_if_public_or_replaced_by_a_stand_in(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    assert _refusal(RunOptions(preset="demo", data=file)).code == "data_not_public"
    assert _refusal(RunOptions(preset="demo", data=file, segments="raw")).code == "data_not_public"
    for options in (
        RunOptions(preset="demo", data=file, public_data=True),
        RunOptions(preset="demo", data=file, stand_in=True),
        RunOptions(preset="demo", data=file, segments="protected"),
    ):
        inputs = plan_from_options(options)
        assert inputs.files.data == file
        assert (inputs.plan.data.source, inputs.plan.data.name) == ("file", "own-data")
        assert inputs.plan.data.public is options.public_data


def test_a_missing_data_file_is_refused_and_data_flags_need_one(tmp_path: Path) -> None:
    assert _refusal(RunOptions(preset="demo", data=tmp_path / "no.jsonl")).code == "data_missing"
    assert "--public-data" in _refusal(RunOptions(preset="demo", public_data=True)).message
    assert "--stand-in" in _refusal(RunOptions(preset="demo", stand_in=True)).message


def test_an_unknown_provider_is_refused() -> None:
    error = _refusal(RunOptions(preset="demo", provider="elsewhere"))
    assert isinstance(error, UsageError)
    assert error.code == "provider_unknown"
    assert "local, static, runpod" in error.hint


def test_provider_options_apply_to_a_rented_run_and_not_to_another_provider() -> None:
    rented = plan_from_options(
        RunOptions(preset="7b-15m", gpu="NVIDIA L4, NVIDIA H100 NVL", max_price=3.0, max_cost=2.0, keep_for=20)
    ).plan.provider
    assert (rented.name, rented.gpus) == ("runpod", ("NVIDIA L4", "NVIDIA H100 NVL"))
    assert (rented.max_price, rented.max_cost, rented.keep_for) == (3.0, 2.0, 20)
    provider = plan_from_options(RunOptions(preset="7b-15m", provider="local")).plan.provider
    assert (provider.name, provider.gpus, provider.max_price) == ("local", (), None)
    static = plan_from_options(RunOptions(preset="7b-15m", provider="static", allocation="box")).plan.provider
    assert (static.name, static.allocation, static.max_cost) == ("static", "box", None)


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(preset="demo", gpu="NVIDIA H100"),
        RunOptions(preset="demo", allocation="x"),
        RunOptions(preset="demo", keep_for=5),
        RunOptions(preset="demo", provider="static", keep_for=5),
        RunOptions(preset="demo", provider="static", gpu="NVIDIA H100"),
        RunOptions(preset="demo", provider="runpod", allocation="x", gpu="NVIDIA H100"),
    ],
)
def test_options_for_rented_allocations_are_refused_elsewhere(options: RunOptions) -> None:
    assert "rented allocation" in _refusal(options).message


def test_an_empty_gpu_list_is_refused() -> None:
    assert "no GPU" in _refusal(RunOptions(preset="demo", gpu=" , ")).message


def own(tmp_path: Path, **options: Any) -> Plan:
    """A plan with data of one's own and no preset."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    return plan_from_options(RunOptions(data=file, segments="protected", **options)).plan


def test_an_own_plan_has_the_documented_recipe_and_an_automatic_length(tmp_path: Path) -> None:
    plan = own(tmp_path, epochs=2)
    assert (plan.training, plan.lora) == (OWN_TRAINING, OWN_LORA)
    assert plan.training.max_length is None
    assert (plan.target.epochs, plan.target.steps) == (2, None)


def test_own_data_under_a_preset_keeps_its_recipe_but_not_its_length_and_held_out_samples(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    plan = plan_from_options(RunOptions(preset="demo", data=file, segments="protected")).plan
    assert plan.training == msgspec.structs.replace(preset("demo").training, max_length=None)
    assert plan.evaluation is None
    given = plan_from_options(RunOptions(preset="demo", data=file, segments="protected", max_length="96")).plan
    assert given.training.max_length == 96


def test_the_options_of_the_recipe_reach_the_plan(tmp_path: Path) -> None:
    plan = own(
        tmp_path,
        steps=100,
        lr_schedule="cosine",
        lr_warmup=3,
        grad_accum=2,
        gradient_checkpointing=True,
        lora_targets="q_proj, v_proj",
        lora_dropout=0.0,
        max_length="auto",
        eval_split=5.0,
    )
    training = plan.training
    assert (training.schedule, training.lr_warmup, training.grad_accum) == ("cosine", 3, 2)
    assert (training.gradient_checkpointing, plan.lora.targets) == (True, ("q_proj", "v_proj"))
    assert (plan.evaluation and plan.evaluation.percent) == 5.0


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1, "epochs": 1},
        {"seconds": 1, "epochs": 1},
        {"steps": 1, "lora_dropout": 0.1},
        {"steps": 1, "max_length": "long"},
        {"steps": 1, "max_length": "-5"},
        {"steps": 1, "max_length": "9" * 400},
        {"seconds": 1, "lr_schedule": "linear"},
        {"steps": 1, "lora_targets": ""},
        {"steps": 1, "lora_targets": "attention,q_proj"},
        {"steps": 1, "eval_split": 5, "eval_file": Path("x")},
        {"steps": 1, "eval_split": 0},
        {"steps": 1, "eval_file": Path("/nonexistent/file")},
        {"steps": 1, "chat_template": Path("/nonexistent/file")},
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(GlasshouseError) as caught:
        own(tmp_path, **options)
    assert caught.value.exit_code == 2
    assert caught.value.hint
