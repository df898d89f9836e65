"""The table of model types against transformers, and a small model of each: described, rehearsed, loaded, adapted."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.numpy import load as read_tensors

from engine.payload.folder import check_tensors
from engine.payload.shape import read_config
from engine.payload.targets import resolved_targets
from engine.plan import Plan, preset
from engine.worker.architecture import Tensor, is_tied, keeps_scores
from engine.worker.known_models import CAUSAL, EAGER, TIED
from engine.worker.linears import dense_linears, ends_with
from tests.needs import LOCAL_EXTRA

torch = pytest.importorskip("torch", reason=LOCAL_EXTRA)
pytest.importorskip("transformers", reason=LOCAL_EXTRA)
pytest.importorskip("peft", reason=LOCAL_EXTRA)
pytestmark = pytest.mark.training

_watching: list[list[str]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in {"open", "import", "os.listdir", "os.scandir", "subprocess.Popen"}:
        _watching[-1].append(f"{event} {arguments[0]}"[:200])


sys.addaudithook(_audit)


class Described(msgspec.Struct, frozen=True):
    """What the operator's machine knows of a folder's weights."""

    linears: dict[str, tuple[int, int]]
    modules: tuple[str, ...]


def plan_for(*targets: str) -> Plan:
    demo = preset("demo")
    training = msgspec.structs.replace(demo.training, gradient_checkpointing=True)
    return msgspec.structs.replace(demo, training=training, lora=msgspec.structs.replace(demo.lora, targets=targets))


@pytest.fixture
def as_a_trainer() -> Any:
    """The settings of a trainer's process, which are a process's own."""
    from engine.worker.training import numerics

    threads, before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    numerics.pin(1)
    yield
    torch.use_deterministic_algorithms(before)
    torch.set_num_threads(threads)


def small_folder(model_type: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and weights of a small model as transformers saves it."""
    from engine.worker.training.classes import import_classes, small_config

    model = import_classes(model_type)[1]._from_config(small_config(model_type), dtype=torch.float32)
    model.save_pretrained(folder)
    arrays = read_tensors((folder / "model.safetensors").read_bytes())
    return json.loads((folder / "config.json").read_bytes()), {k: torch.from_numpy(v) for k, v in arrays.items()}


@pytest.mark.parametrize("model_type", CAUSAL)
def test_the_table_says_what_transformers_says(model_type: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from engine.worker.training.classes import import_classes

    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] == CAUSAL[model_type]
    kind, causal = import_classes(model_type)
    assert causal.supports_gradient_checkpointing
    assert kind().get_text_config().tie_word_embeddings == (model_type in TIED) == is_tied({"model_type": model_type})
    assert causal._supports_sdpa != (model_type in EAGER) == keeps_scores({"model_type": model_type})


@pytest.mark.parametrize("model_type", CAUSAL)
def test_both_sides_train_the_same_modules_and_nothing_is_opened_after_the_rehearsal(
    model_type: str, tmp_path: Path, as_a_trainer: None
) -> None:
    from engine.worker.training.model import add_lora, filled_model, target_endings
    from engine.worker.training.rehearsal import rehearse

    config, weights = small_folder(model_type, tmp_path)
    shape = read_config((tmp_path / "config.json").read_bytes())[1]
    tensors = {name: Tensor("F32", tuple(tensor.shape)) for name, tensor in weights.items()}
    check_tensors(config, shape, tensors)
    linears = dense_linears({name: one.shape for name, one in tensors.items()}, shape.layers)
    described = Described(linears, tuple(name.removesuffix(".weight") for name in tensors))

    plan = plan_for("all-linear")
    rehearse(plan, model_type)
    opened: list[str] = []
    _watching.append(opened)
    try:
        model = filled_model(config, weights, torch.float32)
        attention = target_endings(model, ("attention",))
        adapted = add_lora(model, plan)
        ids = torch.arange(1, 33).reshape(2, 16)
        adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    finally:
        _watching.clear()
    assert opened == []
    assert attention == resolved_targets(described, ("attention",))
    trained = {name: tuple(one.shape) for name, one in adapted.named_parameters() if one.requires_grad}
    rank = plan.lora.r
    expected = {}
    for module, (outputs, inputs) in linears.items():
        expected[f"base_model.model.{module}.lora_A.default.weight"] = (rank, inputs)
        expected[f"base_model.model.{module}.lora_B.default.weight"] = (outputs, rank)
    assert trained == expected
    endings = resolved_targets(described, ("all-linear",))
    assert all(any(ends_with(module, ending) for ending in endings) for module in linears)
    assert os.environ["HF_DEACTIVATE_ASYNC_LOAD"] == "1"
