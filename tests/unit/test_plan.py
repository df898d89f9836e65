"""Plans: validated with the flag to change, canonical, with a digest that follows every field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.errors import PlanError
from engine.plan import (
    PLAN_VERSION,
    Plan,
    checked,
    dump_plan,
    is_of_earlier_version,
    load_plan,
    load_stored_plan,
    plan_digest,
    preset,
)


def _changed(**fields: Any) -> dict[str, Any]:
    raw = dump_plan(preset("demo"))
    for path, value in fields.items():
        target = raw
        *parents, last = path.split("__")
        for parent in parents:
            target = target[parent]
        target[last] = value
    return raw


def _code(raw: dict[str, Any]) -> PlanError:
    with pytest.raises(PlanError) as caught:
        load_plan(raw)
    return caught.value


def test_a_plan_survives_its_own_json() -> None:
    plan = preset("demo")
    assert load_plan(msgspec.json.decode(msgspec.json.encode(dump_plan(plan)))) == plan


def test_both_targets_are_refused_with_both_flags_named() -> None:
    error = _code(_changed(target={"seconds": 10.0, "steps": 10}))
    assert "--seconds" in error.hint
    assert "--steps" in error.hint
    assert error.exit_code == 2


def test_no_target_is_refused() -> None:
    assert _code(_changed(target={"seconds": None, "steps": None})).code == "plan_invalid"


@pytest.mark.parametrize("target", [{"steps": 0}, {"steps": -5}, {"seconds": 0.0}, {"seconds": float("inf")}])
def test_a_target_of_zero_is_refused(target: dict[str, Any]) -> None:
    assert "must be greater than zero" in _code(_changed(target=target)).message


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(PlanError) as caught:
        preset("nope")
    assert caught.value.code == "preset_unknown"
    assert "demo" in caught.value.hint


def test_an_unknown_field_is_refused() -> None:
    assert _code(_changed(surprise=1)).code == "plan_invalid"


@pytest.mark.parametrize("segments", ["pair", "raw"])
def test_private_data_never_runs_raw(segments: str) -> None:
    assert _code(_changed(data__public=False, segments=segments)).code == "data_not_public"


def test_private_data_runs_protected_or_behind_a_stand_in() -> None:
    assert load_plan(_changed(data__public=False, segments="protected", evaluation=None)).kinds() == ("protected",)
    assert load_plan(_changed(data__public=False, data__standIn=True, evaluation=None)).data.stand_in


def test_a_hub_model_needs_a_pinned_revision() -> None:
    error = _code(_changed(model={"source": "hub", "name": "Qwen/Qwen2.5-0.5B-Instruct"}))
    assert "--revision" in error.hint


def test_order_decides_which_segment_runs_first() -> None:
    assert load_plan(_changed(order="protected-first")).kinds() == ("protected", "raw")
    assert load_plan(_changed(order="raw-first")).kinds() == ("raw", "protected")


def _leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))]
    return [path]


def test_every_field_is_in_the_digest() -> None:
    plan = preset("demo")
    base = plan_digest(plan)
    replacements: dict[type, Any] = {int: 7, float: 0.25, str: "x", bool: None, type(None): None}
    seen = 0
    for path in _leaves(dump_plan(plan)):
        raw = dump_plan(plan)
        target = raw
        for key in path[:-1]:
            target = target[key]
        old = target[path[-1]]
        target[path[-1]] = (not old) if isinstance(old, bool) else replacements.get(type(old), old)
        try:
            changed = msgspec.convert(raw, Plan, strict=True)
        except msgspec.ValidationError:
            continue
        if changed != plan:
            assert plan_digest(changed) != base, path
            seen += 1
    assert seen >= 12


@pytest.mark.parametrize(
    "fields",
    [
        {"training__learningRate": 0.0}, {"training__batch": 0}, {"training__maxLength": 1}, {"lora__r": 0},
        {"seed": -1}, {"challenge": ""}, {"challenge": "x" * 513}, {"label": " "}, {"label": "a\nb"}, {"version": 9},
        {"training__settlingSteps": -1}, {"training__gradAccum": 0}, {"training__lrWarmup": -1},
        {"training__lrWarmup": 10**6}, {"target__epochs": 0.0}, {"lora__targets": ["q_proj", "attention"]},
        {"lora__targets": ["q proj"]}, {"evaluation": {"source": "split"}},
        {"evaluation": {"source": "split", "percent": 51.0}}, {"evaluation": {"source": "file", "percent": 5.0}},
        {"evaluation": {"source": "builtin", "question": ""}}, {"evaluation": {"source": "builtin", "answerTokens": 0}},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    assert _code(_changed(**fields)).code == "plan_invalid"


def test_checking_a_good_plan_returns_it() -> None:
    plan = preset("demo")
    assert checked(plan) is plan


@pytest.mark.parametrize("number", [10**400, -(10**400), 2**53])
def test_numbers_too_large_for_a_float_are_refused(number: int) -> None:
    plan = dump_plan(preset("demo"))
    with pytest.raises(PlanError) as caught:
        load_plan({**plan, "target": {"seconds": None, "steps": number}})
    assert caught.value.code == "plan_invalid"


def test_a_falling_learning_rate_needs_a_known_number_of_updates() -> None:
    falling = {"training__schedule": "cosine"}
    assert _code(_changed(**falling, target={"seconds": 60.0})).code == "plan_invalid"
    assert load_plan(_changed(**falling, target={"steps": 60})).training.schedule == "cosine"
    assert load_plan(_changed(**falling, target={"epochs": 2.0})).target.epochs == 2.0


def test_a_question_is_asked_of_public_data_alone() -> None:
    asked = {"evaluation": {"source": "builtin", "name": "x", "question": "Who?"}, "segments": "protected"}
    assert _code(_changed(**asked, data={"public": False})).code == "data_not_public"
    assert load_plan(_changed(**asked)).evaluation is not None


def test_a_length_that_is_not_decided_yet_cannot_be_used() -> None:
    plan = load_plan(_changed(training__maxLength=None))
    with pytest.raises(PlanError):
        _ = plan.training.length


def test_a_stored_plan_of_the_first_version_can_still_be_read() -> None:
    raw = dump_plan(preset("demo"))
    raw["version"] = 1
    raw["training"] = {"warmupSteps": 7, "batch": 2}
    assert is_of_earlier_version(raw)
    plan = load_stored_plan(raw)
    assert (plan.version, plan.training.settling_steps, plan.training.batch) == (PLAN_VERSION, 7, 2)
    assert not is_of_earlier_version(dump_plan(plan))
    assert _code(raw).code == "plan_invalid"
