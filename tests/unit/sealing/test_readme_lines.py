"""The README's code, run unchanged, opens a sealed adapter with the operator's key, and `peft` loads the adapter."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from safetensors.numpy import load, save

import engine.sealing
from engine.payload.build import Payload, build_payload
from engine.plan import preset
from engine.sealing.adapter import AdapterBinding, seal_adapter
from engine.sealing.memory import random_key
from engine.sealing.operator_keys import OperatorKeys
from tests.needs import LOCAL_EXTRA

SEALED, OPENED = "adapter.sealed", "adapter_model.safetensors"


def readme_code() -> str:
    """The Python code in the package's README."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", Path(engine.sealing.__path__[0], "README.md").read_text(), re.M | re.S
    )
    assert len(blocks) == 1
    return str(blocks[0])


@pytest.fixture(scope="module")
def payload() -> Payload:
    return build_payload(preset("demo"))


@pytest.fixture(scope="module")
def trained(payload: Payload) -> bytes:
    """An adapter as after training: the initial one with other values."""
    start = payload.files["adapter.safetensors"]
    assert isinstance(start, bytes)
    noise = np.random.default_rng(1)
    data: bytes = save({name: noise.normal(size=one.shape).astype(one.dtype) for name, one in load(start).items()})
    return data


@pytest.fixture
def folder(trained: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sealed adapter and the operator's key, in which the code runs."""
    keys = OperatorKeys.ensure(tmp_path / "keys")
    binding = AdapterBinding("run-1", "protected", "11" * 32, "22" * 32)
    with (tmp_path / SEALED).open("wb") as out:
        seal_adapter(memoryview(trained), keys.recipient_public, binding, random_key(), out)
    shutil.copy(tmp_path / "keys" / "recipient.pem", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_code_opens_a_sealed_adapter(folder: Path, trained: bytes) -> None:
    namespace: dict[str, Any] = {}
    exec(readme_code(), namespace)  # noqa: S102  the test is that it runs unchanged
    assert namespace["adapter"] == trained == (folder / OPENED).read_bytes()
    assert not any(name.startswith("engine") for name in namespace)
    tensors = load((folder / OPENED).read_bytes())
    assert all(np.array_equal(tensors[name], one) for name, one in load(trained).items())


@pytest.mark.parametrize("damage", ["cut", "extended", "other key"])
def test_the_readme_code_opens_no_damaged_adapter(folder: Path, damage: str) -> None:
    data = (folder / SEALED).read_bytes()
    if damage == "other key":
        OperatorKeys.ensure(folder / "other")
        shutil.copy(folder / "other" / "recipient.pem", folder)
    else:
        (folder / SEALED).write_bytes(data[:-1] if damage == "cut" else data + b"x")
    with pytest.raises(InvalidTag):
        exec(readme_code(), {})  # noqa: S102
    assert not (folder / OPENED).exists()


@pytest.mark.training
def test_the_adapter_that_the_readme_code_opens_loads_in_peft(folder: Path, payload: Payload, trained: bytes) -> None:
    torch, transformers, peft = (
        pytest.importorskip(name, reason=LOCAL_EXTRA) for name in ("torch", "transformers", "peft")
    )
    exec(readme_code(), {})  # noqa: S102
    config, adapter_config = payload.files["config.json"], payload.files["adapter_config.json"]
    assert isinstance(config, bytes)
    assert isinstance(adapter_config, bytes)
    (folder / "adapter_config.json").write_bytes(adapter_config)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**json.loads(config))).eval()
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapted = peft.PeftModel.from_pretrained(model, os.fspath(folder))
        after = adapted(input_ids=ids).logits
    assert not torch.equal(before, after)
    state = peft.get_peft_model_state_dict(adapted)
    expected = load(trained)
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], torch.from_numpy(one)) for name, one in expected.items())
