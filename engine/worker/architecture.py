"""Which models can be trained: one set of rules for the operator's machine, before anything is rented, and the worker.

Loads neither torch nor transformers. The names of the weights are those of transformers' classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from engine.errors import DataError

WEIGHT_DTYPES: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""The types of weights that a training step can compute with, as safetensors names them."""
EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
_MLP: Final = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_ATTENTION: Final = tuple(f"self_attn.{name}_proj" for name in "qkvo")
_PRE_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_POST_NORMS: Final = ("post_attention_layernorm", "post_feedforward_layernorm")
_HEAD_NORMS: Final = ("self_attn.q_norm", "self_attn.k_norm")


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """One supported architecture.

    `tied`: whether the head shares the embedding if config.json does not say. `norms` are each layer's further weights,
    `biases` the projections with a bias in every model, and `optional_biases` those with one if config.json sets
    `attention_bias`.
    """

    causal: str
    protected: bool = False
    tied: bool = False
    norms: tuple[str, ...] = _PRE_NORMS
    biases: tuple[str, ...] = ()
    optional_biases: tuple[str, ...] = ()


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    # A protected trainer imports before it sees the model, so its rehearsal must know the architecture.
    "qwen2": Architecture(causal="Qwen2ForCausalLM", protected=True, biases=_ATTENTION[:3]),
    "qwen3": Architecture(
        causal="Qwen3ForCausalLM", norms=(*_PRE_NORMS, *_HEAD_NORMS), optional_biases=_ATTENTION
    ),
    "llama": Architecture(causal="LlamaForCausalLM", optional_biases=_ATTENTION),
    "mistral": Architecture(causal="MistralForCausalLM"),
    "gemma": Architecture(causal="GemmaForCausalLM", tied=True, optional_biases=_ATTENTION),
    "granite": Architecture(causal="GraniteForCausalLM", optional_biases=_ATTENTION),
    "olmo2": Architecture(
        causal="Olmo2ForCausalLM", norms=(*_POST_NORMS, *_HEAD_NORMS), optional_biases=_ATTENTION
    ),
}  # fmt: skip
"""By `model_type`. Their attention projections have the names that the initial adapter uses."""


def require(model_type: str, kinds: Collection[str]) -> Architecture:
    """The architecture of these segments; raises `DataError` (`architecture_unsupported`)."""
    found = ARCHITECTURES.get(model_type)
    if found is None:
        raise DataError(
            f"The architecture {model_type[:60]!r} is not supported.",
            f"Choose a model of one of these types: {', '.join(ARCHITECTURES)}.",
            code="architecture_unsupported",
        )
    if "protected" in kinds and not found.protected:
        able = ", ".join(name for name, one in ARCHITECTURES.items() if one.protected)
        raise DataError(
            f"Protected segments do not support the architecture {model_type!r}.",
            f"Choose a model of the type {able}, or run a raw segment alone with --segments raw.",
            code="architecture_unsupported",
        )
    return found


def check_config(config: Mapping[str, Any], kinds: Collection[str]) -> Architecture:
    """The architecture that a config.json describes, if these segments can train it.

    Raises `DataError`: `architecture_unsupported`, `model_remote_code`, `model_quantised`.
    """
    if config.get("auto_map"):
        raise DataError(
            "The model's config.json requires code from the model's authors, which is never run.",
            "Choose a model that transformers supports without `trust_remote_code`.",
            code="model_remote_code",
        )
    if config.get("quantization_config"):
        raise DataError(
            "The model's config.json describes quantised weights, which cannot be trained here.",
            "Choose the model's version in bfloat16, float16 or float32.",
            code="model_quantised",
        )
    model_type = config.get("model_type")
    found = require(model_type if isinstance(model_type, str) else "", kinds)
    named = config.get("architectures")
    if named != [found.causal]:
        raise DataError(
            f"The model's config.json does not describe a causal language model of the type {model_type!r}.",
            f"Its `architectures` must be [{found.causal!r}].",
            code="architecture_unsupported",
        )
    return found


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the head shares the embedding's weights, so that the files need not contain it."""
    found = ARCHITECTURES.get(str(config.get("model_type")))
    tied = config.get("tie_word_embeddings")
    return tied if isinstance(tied, bool) else found is not None and found.tied


def required_weights(config: Mapping[str, Any], layers: int) -> list[str]:
    """The names of all weights that a supported model's files must contain."""
    found = require(str(config.get("model_type")), ())
    parts = [f"{name}.weight" for name in (*_ATTENTION, *_MLP, *found.norms)]
    biased = (*found.biases, *(found.optional_biases if config.get("attention_bias") is True else ()))
    parts += [f"{name}.bias" for name in biased]
    if config.get("mlp_bias") is True:
        parts += [f"{name}.bias" for name in _MLP]
    names = [f"model.layers.{layer}.{part}" for layer in range(layers) for part in parts]
    return [EMBEDDING, *names, "model.norm.weight", *(() if is_tied(config) else (HEAD,))]


def check_weights(config: Mapping[str, Any], layers: int, dtypes: Mapping[str, str]) -> None:
    """Check the weights in a model's files, given as name -> type.

    Raises `DataError`: `model_weights_missing`, `model_dtype_unsupported`.
    """
    missing = [name for name in required_weights(config, layers) if name not in dtypes]
    if missing:
        raise missing_weights(missing)
    for name, dtype in dtypes.items():
        check_dtype(name, dtype)


def missing_weights(missing: list[str]) -> DataError:
    """The error for weights that no file of the model contains."""
    return DataError(
        f"{len(missing)} weights are missing, the first is {missing[0]}.",
        "Check that the model is complete, and that its weights belong to its config.json.",
        code="model_weights_missing",
    )


def check_dtype(name: str, dtype: str) -> None:
    """Raise `DataError` (`model_dtype_unsupported`) for a weight of a type that cannot be trained with."""
    if dtype not in WEIGHT_DTYPES:
        raise DataError(
            f"The weight {name[:120]} has the type {dtype[:20]}, which cannot be trained with.",
            "Choose the model's version in bfloat16, float16 or float32.",
            code="model_dtype_unsupported",
        )
