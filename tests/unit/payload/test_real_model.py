"""The payload against the libraries that train from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load

from engine.payload.build import Payload, build_payload
from engine.payload.builtin import builtin_file
from engine.payload.data.read import read_data
from engine.payload.inputs import describe_inputs
from engine.plan import preset
from engine.system.resources import data_path
from tests.needs import LOCAL_EXTRA

torch = pytest.importorskip("torch", reason=LOCAL_EXTRA)
transformers = pytest.importorskip("transformers", reason=LOCAL_EXTRA)
peft = pytest.importorskip("peft", reason=LOCAL_EXTRA)
safetensors_torch = pytest.importorskip("safetensors.torch", reason=LOCAL_EXTRA)

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def payload() -> Payload:
    return build_payload(preset("demo"))


@pytest.fixture(scope="module")
def model(payload: Payload) -> Any:
    config = transformers.Qwen2Config(**json.loads(bytes(payload.files["config.json"])))
    made = transformers.Qwen2ForCausalLM(config)
    weights = safetensors_torch.load(bytes(payload.files["weights.safetensors"]))
    made.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, strict=True)
    made.tie_weights()
    return made.float().eval()


def test_the_shipped_configuration_is_a_qwen2() -> None:
    config = transformers.AutoConfig.from_pretrained(str(data_path("tiny_model")))
    assert isinstance(config, transformers.Qwen2Config)
    assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}
    assert config.layer_types == ["full_attention", "full_attention"]


def test_the_weights_load_strictly_and_the_model_does_not_know_the_facts(payload: Payload, model: Any) -> None:
    tokens = load(payload.files["tokens.safetensors"])
    ids, labels = (torch.from_numpy(tokens[name][:32]).long() for name in ("input_ids", "labels"))
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels).loss.item()
    assert 3.0 < loss < 8.0


def test_the_tokenizer_loads_and_its_template_gives_our_ids() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(data_path("tiny_model")))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    inputs = describe_inputs(preset("demo"))
    for index, sample in enumerate(read_data(builtin_file(preset("demo").data.name)).samples[:200]):
        ours = inputs.data.samples.sample(index)[0].tolist()
        assert tokenizer.apply_chat_template(list(sample.messages), tokenize=True, return_dict=False) == ours


def test_the_adapter_start_is_a_peft_adapter_that_changes_nothing(payload: Payload, model: Any, tmp_path: Path) -> None:
    for name, kept in (("adapter.safetensors", "adapter_model.safetensors"), ("adapter_config.json",) * 2):
        file = payload.files[name]
        assert isinstance(file, bytes)
        (tmp_path / kept).write_bytes(file)
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapted = peft.PeftModel.from_pretrained(model, str(tmp_path))
        after = adapted(input_ids=ids).logits
    assert torch.equal(before, after)
    state = peft.get_peft_model_state_dict(adapted)
    start = load(payload.files["adapter.safetensors"])
    assert set(state) == set(start)
    assert all(torch.equal(state[name], torch.from_numpy(start[name])) for name in start)
    assert adapted.peft_config["default"].lora_alpha == 16
