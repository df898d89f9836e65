"""Weights drawn from a seed: the tiny model's, and the initial LoRA adapter. numpy only, float32."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.payload.seeds import stream
from engine.payload.shape import ModelShape

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


def tiny_weights(seed: int, shape: ModelShape) -> Tensors:
    """Qwen2 weights under their Hugging Face names. Raises `ValueError` unless the embeddings are tied.

    Embeddings have a standard deviation of 0.12 and linear layers one of 1 / sqrt(inputs): frozen random features on
    which an adapter can train.
    """
    if not shape.tied:
        raise ValueError("the tiny model ties its embeddings")
    embedding = near_normal(seed, "embed_tokens", (shape.vocab, shape.hidden), 0.12)
    weights: Tensors = {"model.embed_tokens.weight": embedding}

    def linear(name: str, outputs: int, inputs: int) -> None:
        weights[f"{name}.weight"] = near_normal(seed, name, (outputs, inputs), 1 / math.sqrt(inputs))

    for layer in range(shape.layers):
        base = f"model.layers.{layer}"
        for target in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear(f"{base}.self_attn.{target}", *shape.projection(target))
        for target in ("q_proj", "k_proj", "v_proj"):
            weights[f"{base}.self_attn.{target}.bias"] = np.zeros(shape.projection(target)[0], np.float32)
        linear(f"{base}.mlp.gate_proj", shape.intermediate, shape.hidden)
        linear(f"{base}.mlp.up_proj", shape.intermediate, shape.hidden)
        linear(f"{base}.mlp.down_proj", shape.hidden, shape.intermediate)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{base}.{norm}.weight"] = np.ones(shape.hidden, np.float32)
    weights["model.norm.weight"] = np.ones(shape.hidden, np.float32)
    return weights


def lora_start(seed: int, shape: ModelShape, rank: int, targets: tuple[str, ...]) -> Tensors:
    """A LoRA adapter before its first step, under peft's names: A as `kaiming_uniform(a=sqrt(5))`, B zero."""
    adapter: Tensors = {}
    for layer in range(shape.layers):
        for target in targets:
            outputs, inputs = shape.projection(target)
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            adapter[f"{name}.lora_A.weight"] = uniform(seed, f"{name}.lora_A", (rank, inputs), 1 / math.sqrt(inputs))
            adapter[f"{name}.lora_B.weight"] = np.zeros((outputs, rank), np.float32)
    return adapter
