from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load, save

from engine.errors import DataError
from engine.payload.folder import folder_digest, read_folder
from engine.payload.listing import CHAT_TEMPLATE, INDEX
from engine.payload.model import ModelDescription, describe_model
from engine.payload.shape import ModelShape, read_config
from engine.payload.targets import resolved_targets
from engine.payload.weights import Tensors, lora_start, tiny_layout, tiny_weights
from engine.plan import LORA_TARGETS, preset
from engine.system.resources import data_path
from engine.worker.linears import dense_linears

TINY: dict[str, Any] = json.loads(data_path("tiny_model", "config.json").read_bytes())
GQA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
    "eos_token_id": [2, 5],
}


def shape_of(config: dict[str, Any]) -> ModelShape:
    return read_config(json.dumps(config).encode())[1]


def linears_of(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    shape = shape_of(config)
    return dense_linears(tiny_layout(shape), shape.layers)


def refused(config: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_config(config if isinstance(config, bytes) else json.dumps(config).encode())
    return caught.value.code


def test_a_configuration_gives_its_shape() -> None:
    shape = shape_of(GQA)
    assert (shape.head_dim, shape.kv_heads, shape.eos, shape.pad, shape.tied) == (16, 2, 2, None, False)


def test_head_size_and_key_heads_have_their_usual_defaults() -> None:
    config = {key: value for key, value in GQA.items() if key not in ("head_dim", "num_key_value_heads")}
    shape = shape_of({**config, "eos_token_id": None})
    assert (shape.head_dim, shape.kv_heads, shape.eos) == (8, 6, None)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"architectures": ["BertModel"]}, "architecture_unsupported"),
        ({"architectures": []}, "architecture_unsupported"),
        ({"architectures": None}, "architecture_unsupported"),
        ({"model_type": "bert"}, "architecture_unsupported"),
        ({"model_type": 7}, "architecture_unsupported"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "model_remote_code"),
        ({"quantization_config": {"bits": 4}}, "model_quantised"),
        ({"hidden_size": "48"}, "model_config_invalid"),
        ({"hidden_size": 0}, "model_config_invalid"),
        ({"num_hidden_layers": True}, "model_config_invalid"),
        ({"num_key_value_heads": 4}, "model_config_invalid"),
        ({"head_dim": None, "hidden_size": 50}, "model_config_invalid"),
        ({"eos_token_id": "2"}, "model_config_invalid"),
        ({"is_encoder_decoder": True}, "model_encoder_decoder"),
        ({"vision_config": {}}, "model_multimodal"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "model_multimodal"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_trained_is_refused(changes: dict[str, Any], code: str) -> None:
    assert refused({**GQA, **changes}) == code


def test_a_configuration_that_is_not_a_json_object_is_refused() -> None:
    for raw in (b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}', b" " * (2 * 1024 * 1024)):
        assert refused(raw) == "model_config_invalid"


def test_tiny_weights_follow_from_the_seed() -> None:
    first, again, other = (tiny_weights(seed, shape_of(TINY)) for seed in (5, 5, 6))
    assert save(first) == save(again) != save(other)
    assert {array.dtype for array in first.values()} == {np.dtype(np.float32)}


def test_tiny_weights_have_the_documented_spread() -> None:
    weights = tiny_weights(5, shape_of(TINY))
    embedding = weights["model.embed_tokens.weight"]
    assert float(embedding.std()) == pytest.approx(0.12, rel=0.02)
    assert float(embedding.mean()) == pytest.approx(0, abs=0.002)
    assert float(weights["model.layers.1.mlp.down_proj.weight"].std()) == pytest.approx(384**-0.5, rel=0.03)
    assert (weights["model.norm.weight"] == 1).all()
    assert (weights["model.layers.0.self_attn.k_proj.bias"] == 0).all()
    queries, keys = (weights[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qo")
    assert (queries != keys).any()


def test_weights_are_the_same_on_every_platform() -> None:
    first = tiny_weights(1, shape_of(TINY))["model.layers.0.self_attn.q_proj.weight"].ravel()[:3]
    assert first.view(np.uint32).tolist() == [3155502757, 1046923384, 3150969372]
    start = lora_start(1, linears_of(GQA), 4, ("q_proj",))
    first = start["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].ravel()[:3]
    assert first.view(np.uint32).tolist() == [3188105217, 1029151387, 3169306087]


def test_tiny_weights_require_tied_embeddings() -> None:
    with pytest.raises(ValueError, match="ties"):
        tiny_weights(1, shape_of(GQA))


def test_an_adapter_starts_with_a_bounded_a_and_a_zero_b() -> None:
    start = lora_start(5, linears_of(GQA), 4, LORA_TARGETS)
    assert len(start) == 3 * 4 * 2
    for name, array in start.items():
        assert array.dtype == np.float32
        if name.endswith("lora_B.weight"):
            assert (array == 0).all()
        else:
            bound = array.shape[1] ** -0.5
            assert 0.9 * bound < float(np.abs(array).max()) <= bound * (1 + 1e-6)
    base = "base_model.model.model.layers.2.self_attn"
    assert start[f"{base}.o_proj.lora_A.weight"].shape == (4, 96)
    assert start[f"{base}.o_proj.lora_B.weight"].shape == (48, 4)
    assert start[f"{base}.v_proj.lora_A.weight"].shape == (4, 48)
    assert start[f"{base}.v_proj.lora_B.weight"].shape == (32, 4)


def test_only_the_targets_get_an_adapter() -> None:
    assert len(lora_start(5, linears_of(GQA), 4, ("v_proj",))) == 3 * 2


def folder_of(path: Path, weights: Tensors, *, shards: int = 1) -> Path:
    path.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (path / name).write_bytes(data_path("tiny_model", name).read_bytes())
    if shards == 1:
        (path / "model.safetensors").write_bytes(save(weights))
        return path
    names, index = sorted(weights), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number::shards]
        (path / file).write_bytes(save({name: weights[name] for name in part}))
        index.update(dict.fromkeys(part, file))
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return tiny_weights(5, shape_of(TINY))


def refusal(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_folder(folder)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_gives_its_shards_in_order(tmp_path: Path, weights: Tensors, shards: int) -> None:
    folder = read_folder(folder_of(tmp_path / "m", weights, shards=shards))
    assert folder.shape.layers == 2
    assert list(folder.shards) == sorted((tmp_path / "m").glob("*.safetensors"))
    assert sum(len(load(shard.read_bytes())) for shard in folder.shards) == len(weights)


def test_weights_that_the_index_does_not_name_are_not_packed(tmp_path: Path, weights: Tensors) -> None:
    folder = folder_of(tmp_path / "m", weights, shards=2)
    (folder / "consolidated.safetensors").write_bytes(b"other")
    assert len(read_folder(folder).shards) == 2


def test_a_change_of_any_file_changes_the_folders_digest(tmp_path: Path, weights: Tensors) -> None:
    folder = folder_of(tmp_path / "m", weights, shards=2)
    digests = {folder_digest(read_folder(folder))}
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    digests.add(folder_digest(read_folder(folder)))
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    digests.add(folder_digest(read_folder(folder)))
    (folder / "config.json").write_text(json.dumps({**TINY, "rms_norm_eps": 1e-5}))
    digests.add(folder_digest(read_folder(folder)))
    for name in (CHAT_TEMPLATE, "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        (folder / name).write_text("{}")
        digests.add(folder_digest(read_folder(folder)))
    (folder / "config.json").write_text(json.dumps({**TINY, "rms_norm_eps": 1e-5}) + "\n")
    digests.add(folder_digest(read_folder(folder)))
    assert len(digests) == 9


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("config.json", "model_file_missing"),
        ("tokenizer.json", "model_file_missing"),
        ("model.safetensors", "model_no_safetensors"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, weights: Tensors, name: str, code: str) -> None:
    folder = folder_of(tmp_path / "m", weights)
    (folder / name).unlink()
    error = refusal(folder)
    assert error.code == code
    assert name in error.message


def test_a_missing_shard_is_named(tmp_path: Path, weights: Tensors) -> None:
    folder = folder_of(tmp_path / "m", weights, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refusal(folder).message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent").code == "model_folder_missing"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../secret.safetensors"}}',
        '{"weight_map": {"a": 1}}',
    ],
)
def test_an_unusable_index_is_refused(tmp_path: Path, weights: Tensors, text: str) -> None:
    folder = folder_of(tmp_path / "m", weights)
    (folder / INDEX).write_text(text)
    assert refusal(folder).code == "model_index_invalid"


def test_an_index_that_differs_from_its_shards_is_refused(tmp_path: Path, weights: Tensors) -> None:
    folder = folder_of(tmp_path / "m", weights, shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert refusal(folder).code == "model_index_invalid"


def test_a_damaged_shard_is_refused(tmp_path: Path, weights: Tensors) -> None:
    folder = folder_of(tmp_path / "m", weights)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal(folder).code == "model_weights_invalid"


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.q_proj.bias",
    ],
)
def test_a_weight_that_its_like_shows_to_be_missing_is_named(tmp_path: Path, weights: Tensors, name: str) -> None:
    without = {key: array for key, array in weights.items() if key != name}
    error = refusal(folder_of(tmp_path / "m", without))
    assert error.code == "model_weights_missing"
    assert name in error.message


def test_a_missing_layer_and_a_missing_head_are_named(tmp_path: Path, weights: Tensors) -> None:
    folder = folder_of(tmp_path / "m", weights)
    (folder / "config.json").write_text(json.dumps({**TINY, "num_hidden_layers": 3, "layer_types": None}))
    assert "model.layers.2" in refusal(folder).message
    (folder / "config.json").write_text(json.dumps({**TINY, "tie_word_embeddings": False}))
    assert "lm_head.weight" in refusal(folder).message


def test_an_embedding_of_another_vocabulary_is_refused(tmp_path: Path, weights: Tensors) -> None:
    fewer = {**weights, "model.embed_tokens.weight": np.zeros((8, 64), np.float32)}
    assert refusal(folder_of(tmp_path / "m", fewer)).code == "model_weights_invalid"


def into_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def into_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tiny-q4.gguf")
    (folder / "config.json").unlink()
    (folder / "tokenizer.json").unlink()


def into_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


def into_tekken(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tekken.json")


def into_an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def with_an_endless_template(folder: Path) -> None:
    os.mkfifo(folder / CHAT_TEMPLATE)


def with_a_large_template(folder: Path) -> None:
    (folder / CHAT_TEMPLATE).write_bytes(b"x" * (1024 * 1024 + 1))


@pytest.mark.parametrize(
    ("change", "code", "way_out"),
    [
        (into_pickles, "model_pickled", "save_pretrained('FOLDER')"),
        (into_gguf, "model_gguf", "gguf_file='tiny-q4.gguf'"),
        (into_sentencepiece, "model_tokenizer_unsupported", "pip install sentencepiece"),
        (into_tekken, "model_tokenizer_unsupported", "save_pretrained('FOLDER')"),
        (into_an_adapter, "model_is_adapter", "base_model_name_or_path"),
        (with_an_endless_template, "model_config_invalid", "Save the tokenizer again"),
        (with_a_large_template, "model_config_invalid", "Save the tokenizer again"),
    ],
)
def test_a_folder_in_another_format_is_refused_with_the_way_out(
    tmp_path: Path, weights: Tensors, change: Callable[[Path], None], code: str, way_out: str
) -> None:
    folder = folder_of(tmp_path / "m", weights)
    change(folder)
    error = refusal(folder)
    assert error.code == code
    assert way_out in error.hint


def test_targets_that_the_model_lacks_are_refused_with_those_that_it_has(tmp_path: Path, weights: Tensors) -> None:
    plan = preset("demo")
    folder = folder_of(tmp_path / "m", weights)

    def described(*targets: str) -> ModelDescription:
        lora = msgspec.structs.replace(plan.lora, targets=targets)
        model = msgspec.structs.replace(plan.model, source="folder")
        return describe_model(msgspec.structs.replace(plan, lora=lora, model=model), folder)

    for lacking in ("qkv_proj", "embed_tokens", "lm_head", "norm"):
        with pytest.raises(DataError) as caught:
            described("q_proj", lacking)
        assert caught.value.code == "model_lacks_targets"
        assert lacking in caught.value.message
        assert "q_proj, k_proj, v_proj, o_proj, down_proj, gate_proj, up_proj" in caught.value.hint
    model = described("all-linear")
    assert resolved_targets(model, ("attention",)) == LORA_TARGETS
    everything = resolved_targets(model, ("all-linear",))
    assert resolved_targets(model, everything) == everything
    assert len(lora_start(1, model.linears, 4, everything)) == 2 * 7 * 2
