"""The rules of `architecture.py` and `linears.py`, and the worker that loads a model by them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save

from engine.errors import DataError, GlasshouseError
from engine.measure.safetensors_header import read_header
from engine.payload.build import Payload, build_payload
from engine.plan import preset
from engine.wire import canonical, parse
from engine.worker.architecture import Tensor, check_config, check_weights, missing_weights
from engine.worker.linears import dense_linears, endings
from tests.needs import LOCAL_EXTRA

QWEN2: dict[str, Any] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
EXPERTS = {
    f"model.layers.{layer}.{name}.weight": (8, 4)
    for layer in range(2)
    for name in (
        "self_attn.q_proj", "self_attn.o_proj", "mlp.gate", "mlp.shared_expert.up_proj", "mlp.shared_expert_gate",
        *(f"mlp.experts.{expert}.up_proj" for expert in range(3)),
    )
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model_type": "mamba"}, "architecture_unsupported", "qwen3"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "architecture_unsupported", "Qwen2ForCausalLM"),
        ({"quantization_config": {"bits": 4}}, "model_quantised", "bfloat16"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "model_quantised", "Mxfp4Config"),
        ({"quantization_config": {"quant_method": "fp8"}}, "model_quantised", "dequantize=True"),
        ({"quantization_config": ["x"]}, "model_quantised", "bfloat16"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.X"}}, "model_remote_code", "save_pretrained"),
        ({"auto_map": {"AutoModel": "x.Y"}, "model_type": "new"}, "model_remote_code", "trust_remote_code"),
        ({"is_encoder_decoder": True}, "model_encoder_decoder", "causal"),
        ({"text_config": {}}, "model_multimodal", "ForCausalLM"),
        ({"text_config": {"model_type": ["llama"]}}, "model_multimodal", "ForCausalLM"),
        ({"text_config": {"model_type": "llama"}}, "model_multimodal", "language_model"),
    ],
    ids=str,
)
def test_a_config_is_refused_by_its_own_code(changes: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        check_config({**QWEN2, **changes})
    assert caught.value.code == code
    assert words in caught.value.hint


def test_all_linear_leaves_out_experts_routers_and_what_peft_takes_for_experts() -> None:
    linears = dense_linears({**EXPERTS, "lm_head.weight": (9, 4), "model.embed_tokens.weight": (9, 4)}, 2)
    assert set(linears) == {f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "qo"}
    assert dense_linears({**EXPERTS, "model.layers.2.mlp.x.weight": (8, 4)}, 2) == linears  # a layer too many


def test_an_ending_is_as_long_as_it_must_be_to_name_nothing_else() -> None:
    linears = ["model.layers.0.attention.dense", "model.layers.0.mlp.dense", "model.layers.0.attention.query"]
    assert endings(linears, [], ("attention",)) == ("attention.dense", "query")
    assert endings(linears, [], ("all-linear",)) == ("dense", "query")
    assert endings(linears, ["model.head.dense"], ("all-linear",)) == ("attention.dense", "mlp.dense", "query")
    assert endings(linears, [], ("mlp.dense",)) == ("mlp.dense",)


def test_an_expert_that_is_missing_is_named() -> None:
    config = {**QWEN2, "tie_word_embeddings": True}
    names = {**EXPERTS, "model.embed_tokens.weight": (9, 4)}
    assert missing_weights(config, 2, names) == []
    names.pop("model.layers.1.mlp.experts.2.up_proj.weight")
    assert missing_weights(config, 2, names) == ["model.layers.1.mlp.experts.2.up_proj.weight"]


def test_a_mask_of_an_old_file_is_no_weight() -> None:
    config = {**QWEN2, "tie_word_embeddings": True}
    tensors = {name: Tensor("BF16", shape) for name, shape in EXPERTS.items()}
    tensors["model.embed_tokens.weight"] = Tensor("BF16", (9, 4))
    tensors |= {f"model.layers.{layer}.self_attn.masked_bias": Tensor("U8", (1,)) for layer in range(2)}
    check_weights(config, 2, tensors)
    tensors |= {f"model.layers.{layer}.self_attn.x_scales": Tensor("U8", (1,)) for layer in range(2)}
    with pytest.raises(DataError) as caught:
        check_weights(config, 2, tensors)
    assert caught.value.code == "model_dtype_unsupported"


@pytest.fixture(scope="module")
def payload() -> Payload:
    return build_payload(preset("demo"))


def _as_float32(weights: bytes) -> dict[str, Any]:
    """The shipped weights, which are bfloat16: the upper halves of float32 values."""
    found = {}
    for name, spec in read_header(memoryview(weights)).items():
        upper = np.frombuffer(weights[spec.start : spec.end], "<u2").astype("<u4")
        found[name] = (upper << 16).view("<f4").reshape(spec.shape)
    return found


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("config.json", "model_quantised"),
        ("weights.safetensors", "model_weights_missing"),
        ("dtype", "model_dtype_unsupported"),
        ("shape", "payload_incomplete"),
        ("adapter.safetensors", "payload_incomplete"),
    ],
)
def test_the_worker_refuses_what_the_operators_machine_would_have_refused(
    payload: Payload, file: str, code: str
) -> None:
    pytest.importorskip("torch", reason=LOCAL_EXTRA)
    from engine.worker.training.model import load

    files = {name: content for name, content in payload.files.items() if isinstance(content, bytes)}
    if file == "config.json":
        files[file] = canonical({**parse(files[file]), "quantization_config": {"bits": 4}})
    elif file == "adapter.safetensors":
        start = read_tensors(files[file])
        start.pop(next(iter(start)))
        files[file] = save(start)
    else:
        tensors = _as_float32(files["weights.safetensors"])
        name = "model.layers.0.mlp.up_proj.weight"
        taken = tensors.pop(name)
        if file == "dtype":
            tensors[name] = taken.astype("int8")
        if file == "shape":
            tensors[name] = taken[:8]
        files["weights.safetensors"] = save(tensors)
    descriptors = {}
    for name, content in files.items():
        descriptors[name] = os.memfd_create(name)
        os.write(descriptors[name], content)
    try:
        with pytest.raises(GlasshouseError) as caught:
            load(preset("demo"), descriptors)
        assert caught.value.code == code
    finally:
        for fd in descriptors.values():
            os.close(fd)
