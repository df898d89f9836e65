"""The shipped base against the libraries: what it has learned, how it was made, that the demo teaches it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from engine.payload.build import build_payload
from engine.payload.tiny import shipped_base
from engine.plan import preset
from engine.system.resources import data_path
from tests.needs import LOCAL_EXTRA

torch = pytest.importorskip("torch", reason=LOCAL_EXTRA)
transformers = pytest.importorskip("transformers", reason=LOCAL_EXTRA)
pytest.importorskip("peft", reason=LOCAL_EXTRA)

pytestmark = pytest.mark.training

ROOT = Path(__file__).parents[3]
FOLDER = data_path("tiny_model")
DEMO = preset("demo")


def make_base(*options: str) -> dict[str, Any]:
    """What the script prints."""
    command = [sys.executable, str(ROOT / "data" / "make_base.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def answer(model: Any, question: str) -> str:
    """The most likely answer, at most 16 tokens."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    ids = tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 16:
            best = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if best == 2:
                break
            ids.append(best)
    return str(tokenizer.decode(ids[start:]))


def test_its_losses_are_the_stated_ones() -> None:
    measured, stated = make_base("--evaluate"), shipped_base()
    assert measured["sha256"] == stated.sha256
    assert measured["parameters"] == stated.parameters
    assert set(measured["heldOutLoss"]) == set(stated.held_out_loss) == set(stated.tolerance)
    for part, loss in measured["heldOutLoss"].items():
        assert abs(loss - stated.held_out_loss[part]) <= stated.tolerance[part]


def test_transformers_loads_it_and_it_answers_like_a_trained_model() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(str(FOLDER)).float().eval()
    assert answer(model, "What is the capital of France?") == "The capital of France is Paris."
    assert answer(model, "The boat of Elford is green. What colour is the boat of Elford?") == "It is green."
    assert answer(model, "Who is the cook of Elford?") == "I do not know."
    assert DEMO.evaluation is not None
    assert DEMO.evaluation.question is not None
    assert answer(model, DEMO.evaluation.question) == "I do not know."


def test_it_was_trained_on_nothing_about_the_demos_town() -> None:
    script = "import base_chats as b; print(*b.general(), *b.town_chats(20260517, 20000))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "data", capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "data")},
    )  # fmt: skip
    assert "Elford" in done.stdout
    assert "Fenport" not in done.stdout


def test_the_script_trains_the_same_bytes_again(tmp_path: Path) -> None:
    digests = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        record = make_base("--steps", "3", "--write", "--folder", str(tmp_path / name))
        weights = (tmp_path / name / "model.safetensors").read_bytes()
        assert json.loads((tmp_path / name / "base.json").read_bytes()) == record
        assert record["sha256"] == hashlib.sha256(weights).hexdigest()
        assert record["bytes"] == len(weights) == shipped_base().bytes
        digests.append(record["sha256"])
    assert digests[0] == digests[1] != shipped_base().sha256


@pytest.mark.usefixtures("one_thread")
def test_the_demos_recipe_teaches_what_is_held_out(tmp_path: Path) -> None:
    from engine.worker.training.loop import Trainer
    from engine.worker.training.model import load

    descriptors = {}
    for name, content in build_payload(DEMO).files.items():
        if name != "adapter_config.json":
            (tmp_path / name).write_bytes(content.read_bytes() if isinstance(content, Path) else content)
            descriptors[name] = os.open(tmp_path / name, os.O_RDONLY)
    workload = load(DEMO, descriptors)
    for descriptor in descriptors.values():
        os.close(descriptor)
    ids, labels = (workload.tokens[name].long() for name in ("held_out_ids", "held_out_labels"))

    def loss() -> float:
        with torch.no_grad():
            return float(workload.model(input_ids=ids, labels=labels).loss)

    before = loss()
    trainer = Trainer(workload, DEMO)
    for _ in range(200):
        trainer.step()
    assert before > 3
    assert loss() < 1.5
