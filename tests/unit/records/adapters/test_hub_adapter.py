"""The written folder of a hub model's adapter, loaded by peft from the hub's pinned revision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from safetensors.numpy import save

from engine.payload.adapter_config import planned
from engine.payload.model import describe_model
from engine.payload.tokenizer_files import TokenizerFiles
from engine.payload.weights import lora_start
from engine.plan import Model, preset
from engine.records.adapters.folder import Adapter, Wishes, write_adapter
from engine.system.resources import data_path
from engine.wire import canonical
from tests.fake_hub import MODEL, REVISION, serving
from tests.needs import LOCAL_EXTRA

PLAN = msgspec.structs.replace(preset("demo"), model=Model(source="hub", name=MODEL, revision=REVISION))
LOAD = """
import sys
from peft import AutoPeftModelForCausalLM
print(type(AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])).__name__)
"""


def test_peft_finds_the_base_model_by_its_name_and_revision(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason=LOCAL_EXTRA)
    linears = describe_model(preset("demo"), None).linears
    adapter = Adapter(
        plan=PLAN,
        row={"id": "a1b2c3d4e5f6", "label": "mine", "clean": True},
        kind="raw",
        weights=save(lora_start(1, linears, PLAN.lora.r, PLAN.lora.targets)),
        config=canonical(planned(PLAN)),
        tokenizer=TokenizerFiles(tokenizer=data_path("tiny_model", "tokenizer.json").read_bytes()),
        evidence={},
    )
    folder = tmp_path / "adapter"
    written = write_adapter(adapter, Wishes(), folder, None)
    assert written.missing == ("tokenizer_config.json", "chat_template.jinja")
    with serving() as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(folder)],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.stdout.strip() == "PeftModelForCausalLM", done.stderr
        assert f"/{MODEL}/resolve/{REVISION}/model.safetensors" in [path for path, _ in hub.tokens]
