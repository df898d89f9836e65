"""Weights drawn from a seed: those that the shipped base was trained from, and the initial LoRA adapter.

numpy only, float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.payload.seeds import stream
from engine.payload.shape import ModelShape
from engine.worker.linears import ends_with

Tensors = dict[str, NDArray[np.float32]]

_SUM_MEAN: Final = 2 * 65535
_SUM_STD: Final = math.sqrt((65536**2 - 1) / 3)


def near_normal(seed: int, name: str, shape: tuple[int, ...], std: float) -> NDArray[np.float32]:
    """A near-normal tensor of mean 0; each value is a sum of four 16-bit words, so it is the same on every platform."""
    words = stream(seed, name).random_raw(math.prod(shape)).view(np.uint16).reshape(-1, 4)
    centred: NDArray[np.int64] = words.sum(axis=1, dtype=np.int64) - _SUM_MEAN
    return (centred * (std / _SUM_STD)).astype(np.float32).reshape(shape)


def uniform(seed: int, name: str, shape: tuple[int, ...], bound: float) -> NDArray[np.float32]:
    """Uniform values in [-bound, bound)."""
    drawn = (stream(seed, name).random_raw(math.prod(shape)) >> np.uint64(11)).astype(np.float64)
    return ((drawn * 2.0**-52 - 1.0) * bound).astype(np.float32).reshape(shape)


def tiny_layout(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """The tiny Qwen2's weights under their Hugging Face names, with their shapes."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layout: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        base = f"model.layers.{layer}"
        layout |= {
            f"{base}.self_attn.q_proj.weight": (queries, shape.hidden),
            f"{base}.self_attn.k_proj.weight": (keys, shape.hidden),
            f"{base}.self_attn.v_proj.weight": (keys, shape.hidden),
            f"{base}.self_attn.o_proj.weight": (shape.hidden, queries),
            f"{base}.self_attn.q_proj.bias": (queries,),
            f"{base}.self_attn.k_proj.bias": (keys,),
            f"{base}.self_attn.v_proj.bias": (keys,),
            f"{base}.mlp.gate_proj.weight": (shape.intermediate, shape.hidden),
            f"{base}.mlp.up_proj.weight": (shape.intermediate, shape.hidden),
            f"{base}.mlp.down_proj.weight": (shape.hidden, shape.intermediate),
            f"{base}.input_layernorm.weight": (shape.hidden,),
            f"{base}.post_attention_layernorm.weight": (shape.hidden,),
        }
    return {**layout, "model.norm.weight": (shape.hidden,)}


def tiny_weights(seed: int, shape: ModelShape) -> Tensors:
    """Qwen2 weights as `tiny_layout` lists them. Raises `ValueError` unless the embeddings are tied.

    Embeddings have a standard deviation of 0.12 and linear layers one of 1 / sqrt(inputs).
    """
    if not shape.tied:
        raise ValueError("the tiny model ties its embeddings")
    weights: Tensors = {}
    for name, size in tiny_layout(shape).items():
        if name.endswith("embed_tokens.weight"):
            weights[name] = near_normal(seed, "embed_tokens", size, 0.12)
        elif len(size) == 2:
            weights[name] = near_normal(seed, name.removesuffix(".weight"), size, 1 / math.sqrt(size[1]))
        else:
            weights[name] = np.full(size, 0.0 if name.endswith(".bias") else 1.0, np.float32)
    return weights


def lora_start(seed: int, linears: Mapping[str, tuple[int, int]], rank: int, targets: tuple[str, ...]) -> Tensors:
    """A LoRA adapter before its first step, under peft's names: A as `kaiming_uniform(a=sqrt(5))`, B zero.

    `linears` are the model's linear layers as (outputs, inputs), `targets` endings of their names.
    """
    adapter: Tensors = {}
    for module, (outputs, inputs) in linears.items():
        if any(ends_with(module, target) for target in targets):
            name = f"base_model.model.{module}"
            adapter[f"{name}.lora_A.weight"] = uniform(seed, f"{name}.lora_A", (rank, inputs), 1 / math.sqrt(inputs))
            adapter[f"{name}.lora_B.weight"] = np.zeros((outputs, rank), np.float32)
    return adapter
