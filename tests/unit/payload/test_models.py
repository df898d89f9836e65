from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from engine.errors import DataError
from engine.payload.folder import INDEX, folder_digest, read_folder
from engine.payload.shape import ModelShape, read_config
from engine.payload.weights import Tensors, lora_start, tiny_weights
from engine.plan import LORA_TARGETS
from engine.system.resources import data_path

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


def refused(config: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_config(config if isinstance(config, bytes) else json.dumps(config).encode())
    return caught.value.code


def test_a_configuration_gives_its_shape() -> None:
    shape = shape_of(GQA)
    assert (shape.head_dim, shape.kv_heads, shape.eos, shape.pad, shape.tied) == (16, 2, 2, None, False)
    assert shape.projection("q_proj") == (96, 48)
    assert shape.projection("k_proj") == shape.projection("v_proj") == (32, 48)
    assert shape.projection("o_proj") == (48, 96)


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
        ({"seed": 2**60}, "model_config_invalid"),
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
    assert float(weights["model.layers.1.mlp.down_proj.weight"].std()) == pytest.approx(128**-0.5, rel=0.03)
    assert (weights["model.norm.weight"] == 1).all()
    assert (weights["model.layers.0.self_attn.k_proj.bias"] == 0).all()
    queries, keys = (weights[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qo")
    assert (queries != keys).any()


def test_weights_are_the_same_on_every_platform() -> None:
    first = tiny_weights(1, shape_of(TINY))["model.layers.0.self_attn.q_proj.weight"].ravel()[:3]
    assert first.view(np.uint32).tolist() == [3159551594, 1050882099, 3155365851]
    start = lora_start(1, shape_of(GQA), 4, ("q_proj",))
    first = start["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].ravel()[:3]
    assert first.view(np.uint32).tolist() == [3188105217, 1029151387, 3169306087]


def test_tiny_weights_require_tied_embeddings() -> None:
    with pytest.raises(ValueError, match="ties"):
        tiny_weights(1, shape_of(GQA))


def test_an_adapter_starts_with_a_bounded_a_and_a_zero_b() -> None:
    start = lora_start(5, shape_of(GQA), 4, LORA_TARGETS)
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
    assert len(lora_start(5, shape_of(GQA), 4, ("v_proj",))) == 3 * 2


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
        read_folder(folder, LORA_TARGETS)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_gives_its_shards_in_order(tmp_path: Path, weights: Tensors, shards: int) -> None:
    folder = read_folder(folder_of(tmp_path / "m", weights, shards=shards), LORA_TARGETS)
    assert folder.shape.layers == 2
    assert list(folder.shards) == sorted((tmp_path / "m").glob("*.safetensors"))
    assert sum(len(load(shard.read_bytes())) for shard in folder.shards) == len(weights)


def test_weights_that_the_index_does_not_name_are_not_packed(tmp_path: Path, weights: Tensors) -> None:
    folder = folder_of(tmp_path / "m", weights, shards=2)
    (folder / "consolidated.safetensors").write_bytes(b"other")
    assert len(read_folder(folder, LORA_TARGETS).shards) == 2


def test_a_change_of_any_file_changes_the_folders_digest(tmp_path: Path, weights: Tensors) -> None:
    folder = folder_of(tmp_path / "m", weights, shards=2)
    digests = {folder_digest(read_folder(folder, LORA_TARGETS))}
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b"\n")
    digests.add(folder_digest(read_folder(folder, LORA_TARGETS)))
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    digests.add(folder_digest(read_folder(folder, LORA_TARGETS)))
    (folder / "config.json").write_text(json.dumps({**TINY, "rms_norm_eps": 1e-5}))
    digests.add(folder_digest(read_folder(folder, LORA_TARGETS)))
    assert len(digests) == 4


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, weights: Tensors, name: str) -> None:
    folder = folder_of(tmp_path / "m", weights)
    (folder / name).unlink()
    error = refusal(folder)
    assert error.code == "model_file_missing"
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


def test_weights_without_the_projections_or_of_another_shape_are_refused(tmp_path: Path, weights: Tensors) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    without = {key: array for key, array in weights.items() if key != name}
    assert refusal(folder_of(tmp_path / "a", without)).code == "model_lacks_targets"
    reshaped = {**weights, name: np.zeros((64, 32), np.float32)}
    assert refusal(folder_of(tmp_path / "b", reshaped)).code == "model_lacks_targets"
    fewer = {**weights, "model.embed_tokens.weight": np.zeros((8, 64), np.float32)}
    assert refusal(folder_of(tmp_path / "c", fewer)).code == "model_lacks_targets"
