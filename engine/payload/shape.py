"""A causal language model's configuration: the sizes that a payload needs, checked once."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.errors import DataError, WireError
from engine.wire import parse
from engine.worker.architecture import check_config, is_tied

MAX_CONFIG_BYTES: Final = 1024 * 1024
_HINT: Final = "Give a causal language model that transformers' save_pretrained wrote, in safetensors."
_HIDDEN: Final = ("hidden_size", "n_embd", "d_model")
_LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads")
_POSITIONS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a model. `eos`, `pad` and `positions` are None if the configuration has none.

    `kv_heads`, `head_dim` and `intermediate` follow from the others where the configuration does not say.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int | None
    tied: bool
    eos: int | None
    pad: int | None


def _refuse(what: str, code: str = "model_config_invalid") -> DataError:
    return DataError(f"The model's config.json {what}.", _HINT, code=code)


def _size(config: dict[str, Any], *names: str, default: int | None = None) -> int:
    name = next((name for name in names if config.get(name) is not None), names[0])
    value = config.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise _refuse(f"has no valid {name}")
    return value


def _positions(config: dict[str, Any]) -> int | None:
    """How many positions the model has, if config.json says so."""
    return _size(config, *_POSITIONS) if any(config.get(name) is not None for name in _POSITIONS) else None


def _token(config: dict[str, Any], name: str) -> int | None:
    value = config.get(name)
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _refuse(f"has no valid {name}")
    return value


def read_config(raw: bytes) -> tuple[dict[str, Any], ModelShape]:
    """The configuration and its shape.

    Raises `DataError` (`model_config_invalid`), and as `engine.worker.architecture.check_config`.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise _refuse("is larger than 1 MiB")
    try:
        config = parse(raw)
    except (WireError, UnicodeDecodeError) as error:
        raise _refuse("is not strict JSON") from error
    if not isinstance(config, dict):
        raise _refuse("is not a JSON object")
    check_config(config)
    hidden, heads = _size(config, *_HIDDEN), _size(config, *_HEADS)
    if config.get("head_dim") is None and hidden % heads:
        raise _refuse("has a hidden size that is not a multiple of its number of heads")
    shape = ModelShape(
        hidden=hidden,
        layers=_size(config, *_LAYERS),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", default=heads),
        head_dim=_size(config, "head_dim", default=max(1, hidden // heads)),
        intermediate=_size(config, "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden),
        vocab=_size(config, "vocab_size"),
        positions=_positions(config),
        tied=is_tied(config),
        eos=_token(config, "eos_token_id"),
        pad=_token(config, "pad_token_id"),
    )
    if shape.heads % shape.kv_heads:
        raise _refuse("has a number of query heads that is not a multiple of its key and value heads")
    return config, shape
