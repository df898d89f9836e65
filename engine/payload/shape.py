"""A causal language model's configuration: the sizes that a payload needs, checked once."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Final

import msgspec

from engine.errors import DataError, WireError
from engine.plan import LORA_TARGETS, SegmentKind
from engine.wire import canonical, parse
from engine.worker.architecture import check_config, is_tied

MAX_CONFIG_BYTES: Final = 1024 * 1024
_HINT: Final = "Give a causal language model with Llama's or Qwen2's layout, in safetensors."


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a Llama- or Qwen2-like model; `eos` and `pad` are None if the configuration has none."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int
    tied: bool
    eos: int | None
    pad: int | None

    @property
    def parameters(self) -> int:
        """The number of weights of a model of this layout without biases."""
        attention = sum(math.prod(self.projection(target)) for target in LORA_TARGETS)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return (1 if self.tied else 2) * self.vocab * self.hidden + self.layers * layer + self.hidden

    def projection(self, target: str) -> tuple[int, int]:
        """(outputs, inputs) of an attention projection."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (queries, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, queries),
        }[target]


def _refuse(what: str, code: str = "model_config_invalid") -> DataError:
    return DataError(f"The model's config.json {what}.", _HINT, code=code)


def _size(config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise _refuse(f"has no valid {name}")
    return value


def _token(config: dict[str, Any], name: str) -> int | None:
    value = config.get(name)
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _refuse(f"has no valid {name}")
    return value


def read_config(raw: bytes, kinds: Collection[SegmentKind] = ()) -> tuple[dict[str, Any], ModelShape]:
    """The configuration and its shape, for segments of these kinds.

    Raises `DataError` (`model_config_invalid`), and as `engine.worker.architecture.check_config`.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise _refuse("is larger than 1 MiB")
    try:
        config = parse(raw)
        canonical(config)
    except (WireError, UnicodeDecodeError) as error:
        raise _refuse("is not JSON with a canonical form") from error
    if not isinstance(config, dict):
        raise _refuse("is not a JSON object")
    check_config(config, kinds)
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    if config.get("head_dim") is None and hidden % heads:
        raise _refuse("has a hidden size that is not a multiple of its number of heads")
    shape = ModelShape(
        hidden=hidden,
        layers=_size(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", heads),
        head_dim=_size(config, "head_dim", max(1, hidden // heads)),
        intermediate=_size(config, "intermediate_size"),
        vocab=_size(config, "vocab_size"),
        positions=_size(config, "max_position_embeddings"),
        tied=is_tied(config),
        eos=_token(config, "eos_token_id"),
        pad=_token(config, "pad_token_id"),
    )
    if shape.heads % shape.kv_heads:
        raise _refuse("has a number of query heads that is not a multiple of its key and value heads")
    return config, shape
