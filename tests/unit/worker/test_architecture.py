"""The rules of `architecture.py` against transformers' own classes, and in the worker that loads a model."""

from __future__ import annotations

import os
from typing import Any

import pytest
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save

from engine.errors import DataError
from engine.payload.build import Payload, build_payload
from engine.payload.shape import read_config
from engine.plan import preset
from engine.wire import canonical, parse
from engine.worker.architecture import ARCHITECTURES, HEAD, check_config, is_tied, require, required_weights
from tests.needs import LOCAL_EXTRA

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 64, "eos_token_id": 1, "pad_token_id": 0,
    "bos_token_id": 1,
}  # fmt: skip


def config_of(model_type: str, **changes: Any) -> dict[str, Any]:
    causal = ARCHITECTURES[model_type].causal
    return {**SIZES, "model_type": model_type, "architectures": [causal], **changes}


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention_bias": True}], ids=str)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_required_weights_are_those_of_the_class_that_the_worker_builds(
    model_type: str, changes: dict[str, Any]
) -> None:
    pytest.importorskip("transformers", reason=LOCAL_EXTRA)
    from engine.worker.training.model import empty_model

    config = config_of(model_type, **changes)
    model = empty_model(config)
    assert type(model).__name__ == ARCHITECTURES[model_type].causal
    tied = model.config.get_text_config().tie_word_embeddings
    assert is_tied(config) is tied
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}
    if tied:
        shapes.pop(HEAD, None)
    assert set(required_weights(config, 2)) == set(shapes)
    shape = read_config(canonical(config))[1]
    for target in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert shapes[f"model.layers.1.self_attn.{target}.weight"] == shape.projection(target)


def test_only_a_rehearsed_architecture_runs_protected() -> None:
    assert require("qwen2", ("raw", "protected")).protected
    assert require("llama", ("raw",))
    for kinds in (("protected",), ("raw", "protected")):
        with pytest.raises(DataError) as caught:
            require("llama", kinds)
        assert caught.value.code == "architecture_unsupported"
        assert "--segments raw" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model_type": "mamba"}, "architecture_unsupported"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "architecture_unsupported"),
        ({"quantization_config": {"bits": 4}}, "model_quantised"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.X"}}, "model_remote_code"),
    ],
    ids=str,
)
def test_a_config_is_refused_by_its_own_code(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(DataError) as caught:
        check_config({**config_of("qwen2"), **changes}, ("raw",))
    assert caught.value.code == code


@pytest.fixture(scope="module")
def payload() -> Payload:
    return build_payload(preset("demo"))


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("config.json", "model_quantised"),
        ("weights.safetensors", "model_weights_missing"),
        ("dtype", "model_dtype_unsupported"),
    ],
)
def test_the_worker_refuses_by_the_same_rules(payload: Payload, file: str, code: str) -> None:
    pytest.importorskip("torch", reason=LOCAL_EXTRA)
    from engine.worker.training.model import load

    files = {name: content for name, content in payload.files.items() if isinstance(content, bytes)}
    if file == "config.json":
        files[file] = canonical({**parse(files[file]), "quantization_config": {"bits": 4}})
    else:
        tensors = read_tensors(files["weights.safetensors"])
        name = "model.layers.0.mlp.up_proj.weight"
        taken = tensors.pop(name)
        if file == "dtype":
            tensors[name] = taken.astype("int8")
        files["weights.safetensors"] = save(tensors)
    descriptors = {}
    for name, content in files.items():
        descriptors[name] = os.memfd_create(name)
        os.write(descriptors[name], content)
    try:
        with pytest.raises(DataError) as caught:
            load(preset("demo"), descriptors)
        assert caught.value.code == code
    finally:
        for fd in descriptors.values():
            os.close(fd)
