"""The longest sample that a model and its tokenizer are made for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from engine.errors import DataError
from engine.payload.shape import ModelShape

MAX_TOKENIZER_CONFIG_BYTES: Final = 8 * 1024 * 1024


def length_limits(shape: ModelShape, tokenizer_config: bytes | None) -> dict[str, int]:
    """Every limit in tokens that config.json and tokenizer_config.json state, by its name there.

    A sliding window is none: transformers applies it to longer samples, as the model was trained.
    """
    limits = {} if shape.positions is None else {"max_position_embeddings": shape.positions}
    longest = _model_max_length(tokenizer_config)
    if longest is not None:
        limits["model_max_length"] = longest
    return limits


def check_length(max_length: int, limits: Mapping[str, int]) -> None:
    """Raise `DataError` (`max_length_too_long`) with the smallest limit if it is exceeded."""
    name, limit = min(limits.items(), key=lambda one: one[1], default=("", max_length))
    if max_length > limit:
        raise DataError(
            f"The requested maximum length of {max_length} tokens is above the model's limit of {limit} ({name}).",
            f"Give --max-length {limit} or less.",
            code="max_length_too_long",
        )


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _model_max_length(raw: bytes | None) -> int | None:
    """The tokenizer's own limit. Many files hold 1e30 for "none", and a damaged one is not needed for anything else."""
    if raw is None or len(raw) > MAX_TOKENIZER_CONFIG_BYTES:
        return None
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    longest = value.get("model_max_length") if isinstance(value, dict) else None
    if isinstance(longest, float) and math.isfinite(longest):
        longest = int(longest)
    return longest if _is_count(longest) else None
