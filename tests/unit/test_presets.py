from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engine.errors import PlanError
from engine.plan import MAX_SEED, Plan, checked, dump_plan, load_plan, plan_digest, preset, presets
from engine.system.resources import data_path

PUBLISHED = ("0.5b-15m", "0.5b-30m", "0.5b-60m", "7b-smoke", "7b-15m", "7b-30m", "7b-30k-steps")
ROWS: dict[str, Any] = {
    row["label"]: row for row in json.loads(data_path("published_rows.json").read_bytes())["loraRows"]
}
ROW_OF = {
    "0.5b-15m": ("0.5B 15m",),
    "0.5b-30m": ("0.5B 30m",),
    "0.5b-60m": ("0.5B 60m",),
    "7b-smoke": ("7B smoke",),
    "7b-15m": ("7B 15m",),
    "7b-30m": ("7B 30m", "7B 30m H100"),
    "7b-30k-steps": ("7B 30k-step H100 protected-first",),
}
NOT_A_SETTING = {"version", "label", "preset", "ours", "challenge"}
ALWAYS_STATED = {"segments", "model.name", "model.source", "target.seconds", "target.steps", "provider.name"}
FINETUNING = {"training.learningRate", "training.gradClip", "training.dtype", "training.failOnNonfinite"}
SEVEN_B = FINETUNING - {"training.failOnNonfinite"} | {"training.batch", "training.maxLength"}
STATED = {
    "0.5b-15m": {"order", "provider.gpus"},
    "0.5b-30m": {"order", "provider.gpus"},
    "0.5b-60m": {"order", "provider.gpus"} | FINETUNING,
    "7b-smoke": {"provider.gpus"} | SEVEN_B,
    "7b-15m": {"order", "provider.gpus"} | SEVEN_B,
    "7b-30m": {"order"} | SEVEN_B,
    "7b-30k-steps": {"order"} | SEVEN_B,
}


def leaves(value: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all settings that have a value."""
    settings: set[str] = set()
    for name, item in value.items():
        if isinstance(item, dict):
            settings |= leaves(item, f"{prefix}{name}.")
        elif item is not None and item != ():
            settings.add(prefix + name)
    return settings


def settings(plan: Plan) -> set[str]:
    return {name for name in leaves(dump_plan(plan)) if name not in NOT_A_SETTING and name != "injectOverheadPct"}


def covered(plan: Plan) -> set[str]:
    return {name for name in settings(plan) for own in plan.ours if name == own or name.startswith(f"{own}.")}


def test_the_presets_are_the_demo_and_the_published_ones() -> None:
    assert tuple(presets()) == ("demo", *PUBLISHED)


@pytest.mark.parametrize("name", ["demo", *PUBLISHED])
def test_every_name_in_ours_is_a_setting_and_unique(name: str) -> None:
    plan = preset(name)
    known = settings(plan)
    assert len(set(plan.ours)) == len(plan.ours)
    for own in plan.ours:
        assert any(setting == own or setting.startswith(f"{own}.") for setting in known), own


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_setting_is_either_stated_by_the_article_or_ours(name: str) -> None:
    plan = preset(name)
    stated = (ALWAYS_STATED & settings(plan)) | STATED[name]
    assert covered(plan) | stated == settings(plan)
    assert covered(plan) & stated == set()


def test_all_settings_of_the_demo_but_its_shape_are_ours() -> None:
    assert settings(preset("demo")) - covered(preset("demo")) == {"segments"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_repeats_its_row(name: str) -> None:
    plan = preset(name)
    for label in ROW_OF[name]:
        row = ROWS[label]
        assert plan.model.name == row["model"]
        assert plan.provider.name == row["provider"]
        assert (plan.target.seconds, plan.target.steps) == (row["targetSec"], row["stepBudget"])
        assert row["order"] in (plan.order, None)
        assert any(gpu.startswith(row["gpuModel"]) for gpu in plan.provider.gpus)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_trains_as_the_article_says(name: str) -> None:
    training = preset(name).training
    assert training.learning_rate == (5e-5 if name.startswith("0.5b") else 1e-5)
    assert (training.batch, training.max_length, training.grad_clip) == (1, 64, 1.0)
    assert (training.dtype, training.fail_on_nonfinite) == ("bfloat16", True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_rented_run_has_a_price_and_a_cost_ceiling(name: str) -> None:
    provider = preset(name).provider
    assert provider.max_price is not None
    assert provider.max_cost is not None
    assert 0 < provider.max_price <= 5
    assert provider.max_cost <= 15


def test_the_pinned_revisions() -> None:
    revisions = {plan.model.name: plan.model.revision for plan in presets().values()}
    assert revisions == {
        "glasshouse/tiny-qwen2": None,
        "Qwen/Qwen2.5-0.5B-Instruct": "7ae557604adf67be50417f59c2c2f167def9a775",
        "Qwen/Qwen2.5-7B-Instruct": "a09a35458c702b33eeacc393d103063234e8bc28",
    }


def test_the_demo_needs_no_network_and_stops_by_steps() -> None:
    demo = preset("demo")
    assert (demo.provider.name, demo.model.source, demo.data.source) == ("local", "tiny", "builtin")
    assert demo.target.steps is not None
    assert demo.target.seconds is None


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(PlanError) as caught:
        preset("70b")
    assert caught.value.code == "preset_unknown"
    assert "7b-30k-steps" in caught.value.hint


@pytest.mark.parametrize("name", ["demo", *PUBLISHED])
def test_a_dumped_preset_loads_with_the_same_digest(name: str) -> None:
    plan = preset(name)
    again = load_plan(json.loads(json.dumps(dump_plan(plan))))
    assert again == plan
    assert plan_digest(again) == plan_digest(plan)


@pytest.mark.parametrize(
    "changes",
    [
        {"target": {"seconds": 1.0, "steps": 1}},
        {"target": {}},
        {"target": {"steps": 0}},
        {"seed": MAX_SEED + 1},
        {"seed": -1},
        {"lora": {"targets": []}},
        {"lora": {"targets": ["q_proj", "q_proj"]}},
        {"lora": {"targets": ["lm-head"]}},
        {"model": {"source": "hub", "name": "a/b", "revision": "main"}},
        {"model": {"source": "hub", "name": "a/b"}},
        {"training": {"settlingSteps": 2**60}},
        {"training": {"weightDecay": -0.1}},
        {"marginPct": 0.0},
        {"injectOverheadPct": -1.0},
        {"challenge": "\udc80"},
        {"data": {"public": False}},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_plan_that_cannot_run_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        load_plan({**dump_plan(preset("demo")), **changes})


def test_the_largest_seed_has_a_digest() -> None:
    assert plan_digest(checked(msgspec.structs.replace(preset("demo"), seed=MAX_SEED)))
