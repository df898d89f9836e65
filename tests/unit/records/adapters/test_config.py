"""adapter_config.json against a plan."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.errors import RefusedError
from engine.payload.adapter_config import planned
from engine.payload.build import build_payload
from engine.plan import Model, preset
from engine.records.adapters.config import differences, read_config

TINY = preset("demo")
HUB = msgspec.structs.replace(TINY, model=Model(source="hub", name="org/model", revision="a" * 40))


def test_what_the_payload_states_is_what_the_plan_says() -> None:
    config = read_config(build_payload(TINY).files["adapter_config.json"])  # type: ignore[arg-type]
    assert differences(TINY, config) == ()


def test_peft_itself_may_have_saved_it() -> None:
    saved = planned(HUB) | {"peft_version": "0.21", "layers_pattern": None, "alpha_pattern": {}, "use_dora": False}
    assert differences(HUB, saved | {"target_modules": list(reversed(planned(HUB)["target_modules"]))}) == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"base_model_name_or_path": "org/other"}, "base_model_name_or_path"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path"),
        ({"revision": "b" * 40}, "revision"),
        ({"revision": None}, "revision"),
        ({"r": 16}, "r"),
        ({"r": True}, "r"),
        ({"lora_alpha": 8}, "lora_alpha"),
        ({"target_modules": ["q_proj"]}, "target_modules"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"bias": "all"}, "bias"),
        ({"lora_dropout": 0.5}, "lora_dropout"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 1}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"init_lora_weights": 2}, "init_lora_weights"),
    ],
)
def test_a_field_that_changes_what_the_adapter_computes_is_named(change: dict[str, Any], field: str) -> None:
    assert differences(HUB, planned(HUB) | change) == (field,)


def test_a_base_model_beside_the_adapter_may_be_named_by_its_path() -> None:
    named = planned(TINY) | {"base_model_name_or_path": "/some/where/base"}
    assert differences(TINY, named, beside=True) == ()
    assert differences(TINY, named) == ("base_model_name_or_path",)
    elsewhere = named | {"base_model_name_or_path": "/some/where/else"}
    assert differences(TINY, elsewhere, beside=True) == ("base_model_name_or_path",)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000, b" " * 1_048_577])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        read_config(data)
    assert caught.value.code == "adapter_config_malformed"
