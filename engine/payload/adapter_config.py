"""peft's `LoraConfig` of a plan: what the payload carries, and what an adapter's folder is compared with."""

from __future__ import annotations

from typing import Any

from engine.plan import Plan
from engine.wire import canonical


def planned(plan: Plan) -> dict[str, Any]:
    """What a plan decides of the configuration, by peft's names. Only a hub model has a name that peft can resolve."""
    return {
        "base_model_name_or_path": plan.model.name if plan.model.source == "hub" else None,
        "revision": plan.model.revision,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": plan.lora.r,
        "lora_alpha": plan.lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(plan.lora.targets),
        "bias": "none",
    }


def adapter_config(plan: Plan) -> bytes:
    """adapter_config.json for the collected adapter, canonical."""
    return canonical(planned(plan) | {"fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True})
