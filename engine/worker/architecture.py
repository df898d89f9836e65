"""Which models can be trained: one set of rules for the operator's machine, before anything is rented, and the worker.

Loads neither torch nor transformers. The names of the weights are those of transformers' classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from engine.errors import DataError
from engine.worker.known_models import CAUSAL, EAGER, TIED
from engine.worker.linears import layer_parts

WEIGHT_DTYPES: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""The types of weights that a training step can compute with, as safetensors names them."""
_HEADS: Final = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS: Final = ("embed_tokens.weight", "embed_in.weight", "word_embeddings.weight", "wte.weight")
_BUFFERS: Final = ("attention.bias", "attn.bias", "masked_bias", "position_ids")
"""Endings of what old files hold beside the weights: masks and positions, which are no numbers to train with."""
_ALL: Final = "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T"
_SAVE: Final = ".save_pretrained('FOLDER'); T.from_pretrained('MODEL').save_pretrained('FOLDER')"
_TEXT_ALONE: Final = (
    'python -c "from transformers import AutoModelForCausalLM as M, AutoModelForImageTextToText as A, AutoTokenizer as '
    "T; a = A.from_pretrained('MODEL', dtype='auto'); m = M.from_config(a.config.text_config, dtype=a.dtype); "
    "m.model.load_state_dict(a.model.language_model.state_dict()); m.lm_head.load_state_dict(a.lm_head.state_dict()); "
    f'm{_SAVE}"'
)
"""A shell command that writes the language model of one that also reads images as a folder that can be trained."""
_DEQUANTISED: Final = {
    "mxfp4": ("Mxfp4Config as C", "'MODEL', quantization_config=C(dequantize=True), dtype='bfloat16')"),
    "fp8": ("FineGrainedFP8Config as C", "'MODEL', quantization_config=C(dequantize=True), dtype='bfloat16')"),
    "bitsandbytes": ("BitsAndBytesConfig", "'MODEL', device_map='auto').dequantize()"),
}
"""By `quant_method`: what to import, and the rest of the call that loads the model's weights as plain numbers."""


class Tensor(msgspec.Struct, frozen=True):
    """A tensor in a weight file; `dtype` as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]


def converting(arguments: str = "'MODEL', dtype='auto')", more: str = "") -> str:
    """A shell command that writes a model as a folder that can be trained."""
    names = f", {more}" if more else ""
    return f'python -c "{_ALL}{names}; M.from_pretrained({arguments}{_SAVE}"'


def check_config(config: Mapping[str, Any]) -> str:
    """The `model_type` that a config.json describes, if it can be trained.

    Raises `DataError`: `model_remote_code`, `model_quantised`, `model_encoder_decoder`, `model_multimodal`,
    `architecture_unsupported`.
    """
    found = config.get("model_type")
    model_type = found if isinstance(found, str) else ""
    if config.get("auto_map"):
        raise _remote_code(model_type)
    if config.get("quantization_config"):
        raise _quantised(config["quantization_config"])
    named = config.get("architectures")
    classes = [one for one in named if isinstance(one, str)] if isinstance(named, list) else []
    if config.get("is_encoder_decoder") is True:
        raise DataError(
            "The model is an encoder with a decoder, which is not trained here.",
            "Choose a model that only continues a text (a causal language model).",
            code="model_encoder_decoder",
        )
    parts = [key for key in config if key in {"vision_config", "audio_config", "text_config"}]
    if parts or any(one.endswith("ForConditionalGeneration") for one in classes):
        raise _multimodal(config.get("text_config"))
    causal = require(model_type)
    if named != [causal]:
        raise DataError(
            f"The model's config.json does not describe a causal language model of the type {model_type!r}.",
            f"Its `architectures` must be [{causal!r}].",
            code="architecture_unsupported",
        )
    return model_type


def require(model_type: str) -> str:
    """The class of a model type that can be trained; raises `DataError` (`architecture_unsupported`)."""
    causal = CAUSAL.get(model_type)
    if causal is None:
        raise DataError(
            f"The architecture {model_type[:60]!r} is not supported.",
            f"Choose a model of one of these types: {', '.join(CAUSAL)}.",
            code="architecture_unsupported",
        )
    return causal


def _remote_code(model_type: str) -> DataError:
    hint = "Choose a model that transformers supports without `trust_remote_code`."
    if model_type in CAUSAL:
        hint = f"transformers has code of its own for this model: save it with that. Run {converting()}"
    return DataError(
        "The model's config.json requires code from the model's authors, which is never run.",
        hint,
        code="model_remote_code",
    )


def _multimodal(text: object) -> DataError:
    hint = "Choose the model's text-only version, whose architecture ends in ForCausalLM."
    model_type = text.get("model_type") if isinstance(text, Mapping) else None
    if isinstance(model_type, str) and model_type in CAUSAL:
        hint = f"Choose the model's text-only version, or save its language model alone: run {_TEXT_ALONE}"
    return DataError(
        "The model reads more than text (images or sound), which is not trained here.", hint, code="model_multimodal"
    )


def _quantised(settings: object) -> DataError:
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    known = _DEQUANTISED.get(method) if isinstance(method, str) else None
    hint = "Choose the model's version in bfloat16, float16 or float32."
    if known is not None:
        hint = f"Choose its version in bfloat16 or float32, or make one: run {converting(known[1], known[0])}"
    return DataError(
        "The model's config.json describes quantised weights, which cannot be trained here.",
        hint,
        code="model_quantised",
    )


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the head shares the embedding's weights, so that the files need not contain it."""
    tied = config.get("tie_word_embeddings")
    return tied if isinstance(tied, bool) else config.get("model_type") in TIED


def keeps_scores(config: Mapping[str, Any]) -> bool:
    """Whether the model's attention is computed step by step, by Python."""
    return config.get("model_type") in EAGER


def embedding_of(names: Collection[str]) -> str | None:
    """The name of the weight that turns tokens into vectors; None if there is none."""
    return next((name for name in names for ending in _EMBEDDINGS if _is(name, ending)), None)


def is_head(name: str) -> bool:
    """Whether a weight is the model's head."""
    return any(_is(name, ending) for ending in _HEADS)


def _is(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def check_weights(config: Mapping[str, Any], layers: int, tensors: Mapping[str, Tensor]) -> None:
    """Check the weights in a model's files, by what every layer has in common with its like.

    Raises `DataError`: `model_weights_missing`, `model_dtype_unsupported`.
    """
    missing = missing_weights(config, layers, tensors)
    if missing:
        raise weights_missing(missing)
    for name, tensor in tensors.items():
        check_dtype(name, tensor.dtype)


def missing_weights(config: Mapping[str, Any], layers: int, names: Collection[str]) -> list[str]:
    """Names of weights that the model's files lack, as far as other layers and experts show it."""
    missing = []
    if embedding_of(names) is None:
        missing.append(f"model.{_EMBEDDINGS[0]}")
    if not is_tied(config) and not any(map(is_head, names)):
        missing.append(_HEADS[0])
    prefix, parts = layer_parts(names)
    if any("norm" in part for inside in parts.values() for part in inside) and not any(
        "norm" in name and not name.startswith(f"{prefix}.") for name in names
    ):
        missing.append(f"{prefix.rpartition('.')[0]}.norm.weight")
    missing += [f"{prefix or 'model.layers'}.{index}" for index in range(layers) if index not in parts]
    alike: dict[object, list[int]] = {}
    for index in range(layers):
        if index in parts:
            alike.setdefault(_kind(config, layers, index, parts[index]), []).append(index)
    for indices in alike.values():
        common = set().union(*(parts[index] for index in indices))
        common |= {part for index in indices for part in _experts(parts[index])}
        for index in indices:
            missing += sorted(f"{prefix}.{index}.{part}" for part in common - parts[index])
    return missing


def _kind(config: Mapping[str, Any], layers: int, index: int, parts: Collection[str]) -> object:
    """What a layer shares with those that must have the same weights."""
    lists = sorted(key for key, value in config.items() if isinstance(value, list) and len(value) == layers)
    kinds = tuple(str(config[key][index]) for key in lists if key.endswith(("layer_types", "block_types")))
    return kinds, any("experts" in part.split(".") for part in parts)


def _experts(parts: Collection[str]) -> set[str]:
    """The weights of every expert, where each has its own."""
    numbers: set[str] = set()
    inside: set[tuple[str, str]] = set()
    for part in parts:
        before, found, after = part.partition("experts.")
        number, _, rest = after.partition(".")
        if found and number.isdigit():
            numbers.add(number)
            inside.add((before, rest))
    return {f"{before}experts.{number}.{rest}" for before, rest in inside for number in numbers}


def weights_missing(missing: list[str]) -> DataError:
    """The error for weights that no file of the model contains."""
    return DataError(
        f"{len(missing)} weights are missing, the first is {missing[0][:120]}.",
        "Check that the model is complete, and that its weights belong to its config.json.",
        code="model_weights_missing",
    )


def check_dtype(name: str, dtype: str) -> None:
    """Raise `DataError` (`model_dtype_unsupported`) for a weight of a type that cannot be trained with."""
    if dtype not in WEIGHT_DTYPES and not any(_is(name, ending) for ending in _BUFFERS):
        raise DataError(
            f"The weight {name[:120]} has the type {dtype[:20]}, which cannot be trained with.",
            "Choose the model's version in bfloat16, float16 or float32.",
            code="model_dtype_unsupported",
        )
