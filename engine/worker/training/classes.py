"""transformers' classes of a model type, and a configuration of each that is small enough to rehearse with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine.worker.known_models import CAUSAL

_SMALL: Final = {
    "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "word_embed_proj_dim": 32, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "sliding_window": 4,
}  # fmt: skip
"""Sizes by the names that transformers uses for all models; a window shorter than the rehearsal's samples is a mask."""
_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_NOT_READ: Final = frozenset(
    {
        "torch_dtype", "dtype", "attn_implementation", "_attn_implementation", "experts_implementation",
        "_experts_implementation", "fusion_config",
    }
)  # fmt: skip
"""What a config.json may say about how a model is computed: this project decides that."""


def import_classes(model_type: str) -> tuple[Any, Any]:
    """The classes of configuration and model; imports what they need."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would start a thread
    return CONFIG_MAPPING[model_type], getattr(transformers, CAUSAL[model_type])


def configured(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The class of a model and its configuration, from what a config.json says."""
    kind, causal = import_classes(str(config["model_type"]))
    return causal, kind.from_dict({key: value for key, value in config.items() if key not in _NOT_READ})


def attention(causal: Any) -> str:
    """torch's fused attention where the class has it."""
    return "sdpa" if causal._supports_sdpa else "eager"


def small_config(model_type: str) -> Any:
    """transformers' own default configuration of a type with everything shrunk, and a layer of each kind."""
    kind, _ = import_classes(model_type)
    default = kind()
    known, names = default.to_dict(), dict(kind.attribute_map)
    settings: dict[str, Any] = {}
    for name, size in _SMALL.items():
        own = names.get(name, name)
        if isinstance(known.get(own), int) or (own in known and name == "num_key_value_heads"):
            settings[own] = size
    for name in _TOKENS:
        if known.get(name) is not None:
            settings[name] = [1] if isinstance(known[name], list) else 1
    kinds = list(dict.fromkeys(known.get("layer_types") or ()))
    layers = max(2, len(kinds))
    settings[names.get("num_hidden_layers", "num_hidden_layers")] = layers
    if kinds:
        settings["layer_types"] = (kinds * layers)[:layers]
    return kind(**settings)
