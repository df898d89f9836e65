"""An adapter's adapter_config.json, and whether it is the one of a plan."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

from engine.errors import RefusedError, WireError
from engine.payload.adapter_config import planned
from engine.plan import Plan
from engine.wire import canonical, parse

ADAPTER_CONFIG: Final = "adapter_config.json"
MAX_CONFIG_BYTES: Final = 1024 * 1024
BASE: Final = "base"
"""The folder beside the adapter that holds its base model, where it was written too."""
_BASE_NAME: Final = "base_model_name_or_path"
_SAVED: Final = frozenset({"peft_version", "megatron_core", "auto_mapping", "inference_mode"})
"""Fields that say nothing about what the adapter computes, and that peft may add or change when it saves one."""
_START: Final = "init_lora_weights"
"""True and false say nothing, because the weights are loaded afterwards. Names such as `olora` change the base."""


def read_config(data: bytes) -> dict[str, Any]:
    """The configuration's fields; raises `RefusedError` (`adapter_config_malformed`)."""
    try:
        config = parse(data) if len(data) <= MAX_CONFIG_BYTES else None
    except WireError:
        config = None
    if not isinstance(config, dict):
        raise RefusedError(
            f"The adapter's {ADAPTER_CONFIG} is not a JSON object.",
            "Open the adapter again with `glasshouse adapter`.",
            code="adapter_config_malformed",
        )
    return config


def differences(plan: Plan, config: dict[str, Any], *, beside: bool = False) -> tuple[str, ...]:
    """The fields in which a configuration is not the plan's, sorted.

    `beside`: the folder holds the base model in `BASE`, so that its path may be named. A field that the plan does not
    decide must say nothing (null, false, empty): some of them change what the adapter computes.
    """
    expected = planned(plan)
    expected["target_modules"] = sorted(expected["target_modules"])
    shown = dict(config)
    if isinstance(shown.get("target_modules"), list):
        shown["target_modules"] = sorted(map(str, shown["target_modules"]))
    named = shown.get(_BASE_NAME)
    if beside and isinstance(named, str) and PurePosixPath(named).name == BASE:
        shown[_BASE_NAME] = None
    wrong = {name for name, value in expected.items() if not _is(shown.get(name), value)}
    wrong |= {name for name, value in shown.items() if value and name not in {*expected, *_SAVED, _START}}
    if shown.get(_START) not in (None, True, False):
        wrong.add(_START)
    return tuple(sorted(wrong))


def _is(found: object, value: object) -> bool:
    """Equal, and not only as 1 equals True."""
    return found == value and isinstance(found, bool) == isinstance(value, bool)


def with_base(config: dict[str, Any], path: str | None) -> bytes:
    """The configuration with another place of its base model, canonical."""
    return canonical(config | {_BASE_NAME: path})
