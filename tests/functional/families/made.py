"""Small model folders of each family, as transformers writes them, with the switches that its large models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from engine.system.resources import data_path

_SIZES: Final[dict[str, Any]] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 1024, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_MIXED: Final = {
    "head_dim": 8, "num_hidden_layers": 3, "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
_LLAMA3: Final = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_YARN: Final = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "attention_bias": True},
    "llama": {"rope_parameters": _LLAMA3, "mlp_bias": True},
    "mistral": {"sliding_window": 16},
    "gemma2": {**_MIXED, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_MIXED, "query_pre_attn_scalar": 8},
    "granite": {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},
    "olmo2": {},
    "phi3": {"sliding_window": 16, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "smollm3": {"no_rope_layer_interval": 2},
    "qwen3_moe": {"head_dim": 8, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                  "mlp_only_layers": [0]},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {**_MIXED, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": _YARN},
}  # fmt: skip
"""Sizes of this project's tiny tokenizer, and for each family what differs from transformers' defaults."""


def config_of(model_type: str) -> Any:
    """The configuration of a family's small model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](**{**_SIZES, **FAMILIES[model_type]})


def make_folder(model_type: str, folder: Path, *, shards: bool = False) -> Path:
    """A folder with random weights of the family, saved by transformers, and this project's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = AutoModelForCausalLM.from_config(config_of(model_type), dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="60KB" if shards else "5GB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(data_path("tiny_model", name).read_bytes())
    return folder
