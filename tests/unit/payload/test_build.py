from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load, save

from engine.errors import DataError
from engine.payload.build import Payload, build_payload
from engine.payload.inputs import describe_inputs, plan_with_digests
from engine.payload.local_files import LocalFiles
from engine.payload.shape import read_config
from engine.payload.tensors import array_digest
from engine.payload.weights import tiny_weights
from engine.plan import Plan, load_plan, preset
from engine.system.resources import data_path
from engine.wire import canonical, digest_of

DEMO = preset("demo")
HERE = Path(__file__).parents[3]


def changed(**fields: Any) -> Plan:
    return load_plan({**msgspec.to_builtins(DEMO), **fields})


def tensors(payload: Payload, name: str) -> dict[str, Any]:
    file = payload.files[name]
    assert isinstance(file, bytes)
    return dict(load(file))


@pytest.fixture(scope="module")
def payload() -> Payload:
    return build_payload(plan_with_digests(DEMO))


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.jsonl"
    lines = [{"prompt": f"What is {n} + {n}?", "completion": f"{2 * n}."} for n in range(20)]
    lines.append({"prompt": "why " * 200, "completion": "Because."})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = data_path("tiny_model", "config.json").read_bytes()
    (folder / "config.json").write_bytes(config)
    (folder / "tokenizer.json").write_bytes(data_path("tiny_model", "tokenizer.json").read_bytes())
    (folder / "model.safetensors").write_bytes(save(tiny_weights(9, read_config(config)[1])))
    return folder


FOLDER = {"source": "folder", "name": "model"}


def test_the_tiny_payload_has_its_files(payload: Payload) -> None:
    assert set(payload.files) == {
        "tokens.safetensors",
        "adapter.safetensors",
        "config.json",
        "adapter_config.json",
        "tokenizer.json",
        "weights.safetensors",
    }
    in_memory = sum(len(file) for file in payload.files.values() if isinstance(file, bytes))
    assert payload.size() == in_memory + data_path("tiny_model", "tokenizer.json").stat().st_size
    assert (payload.samples, payload.dropped) == (200, 0)


def test_tokens_have_the_stated_types_and_shapes(payload: Payload) -> None:
    tokens = tensors(payload, "tokens.safetensors")
    held_out = {"held_out_ids", "held_out_labels", "question_ids", "question_stops"}
    assert set(tokens) == {"input_ids", "labels", "order"} | held_out
    assert tokens["held_out_ids"].shape == tokens["held_out_labels"].shape == (80, 40)
    assert tokens["question_stops"].tolist() == [2]
    assert tokens["input_ids"].shape == tokens["labels"].shape == (200, 40)
    assert tokens["input_ids"].dtype == tokens["labels"].dtype == np.int32
    assert tokens["order"].dtype == np.int64
    assert len(tokens["order"]) % 200 == 0
    assert len(tokens["order"]) >= 1840
    assert sorted(tokens["order"][:200].tolist()) == list(range(200))


def test_no_file_has_more_than_one_metadata_key(payload: Payload) -> None:
    for name, file in payload.files.items():
        if name.endswith(".safetensors"):
            assert isinstance(file, bytes)
            header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
            assert len(header.get("__metadata__", {})) <= 1


def test_the_model_s_configuration_is_sent_as_it_is_and_the_adapters_is_canonical(payload: Payload) -> None:
    assert payload.files["config.json"] == data_path("tiny_model", "config.json").read_bytes()
    file = payload.files["adapter_config.json"]
    assert isinstance(file, bytes)
    assert canonical(json.loads(file)) == file


def test_two_builds_of_a_plan_are_equal_to_the_byte(payload: Payload) -> None:
    assert build_payload(plan_with_digests(DEMO)).files == payload.files


def test_a_build_in_another_process_is_equal_to_the_byte(payload: Payload) -> None:
    code = (
        "from engine.payload.build import build_payload; from engine.plan import preset; import hashlib\n"
        "files = build_payload(preset('demo')).files\n"
        "kept = [files[name] for name in sorted(files) if isinstance(files[name], bytes)]\n"
        "print(hashlib.sha256(b''.join(kept)).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    files = [payload.files[name] for name in sorted(payload.files)]
    assert other.stdout.strip() == hashlib.sha256(b"".join(f for f in files if isinstance(f, bytes))).hexdigest()


def test_the_digests_are_those_of_the_tensors(payload: Payload) -> None:
    tokens = tensors(payload, "tokens.safetensors")
    assert payload.order_digest == array_digest({"order": tokens.pop("order")})
    assert payload.tokens_digest == array_digest(tokens)
    assert payload.init_digest == array_digest(tensors(payload, "adapter.safetensors"))
    weights = payload.files["weights.safetensors"]
    assert isinstance(weights, bytes)
    assert payload.model_digest == hashlib.sha256(weights).hexdigest()


def test_another_seed_changes_adapter_and_order_but_neither_weights_nor_tokens(payload: Payload) -> None:
    other = build_payload(changed(seed=1))
    assert other.model_digest == payload.model_digest
    assert other.init_digest != payload.init_digest
    assert other.order_digest != payload.order_digest
    assert other.tokens_digest == payload.tokens_digest


def test_rank_targets_and_alpha_reach_the_adapter() -> None:
    made = build_payload(changed(lora={"r": 4, "alpha": 12, "targets": ["q_proj", "v_proj"]}))
    start = tensors(made, "adapter.safetensors")
    assert len(start) == 2 * 2 * 2
    assert start["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"].shape == (64, 4)
    file = made.files["adapter_config.json"]
    assert isinstance(file, bytes)
    config = json.loads(file)
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 12, ["q_proj", "v_proj"])


def test_the_order_covers_settling_steps_and_batch() -> None:
    def entries(training: dict[str, int]) -> int:
        plan = changed(target={"steps": 200}, training=training)
        return len(tensors(build_payload(plan), "tokens.safetensors")["order"])

    assert entries({"settlingSteps": 0}) == 200
    assert entries({"settlingSteps": 1}) == 2 * 200
    assert entries({"settlingSteps": 0, "batch": 3}) == 3 * 200


def test_a_run_by_time_gets_a_long_order() -> None:
    order = tensors(build_payload(changed(target={"seconds": 900.0})), "tokens.safetensors")["order"]
    assert len(order) > 60_000


def test_own_data_is_described_and_packed_and_its_dropped_samples_are_counted(data_file: Path) -> None:
    plan = changed(data={"source": "file", "name": "own.jsonl"})
    inputs = describe_inputs(plan, LocalFiles(data=data_file))
    counts = inputs.report.counts
    assert (inputs.report.samples, counts.used, counts.dropped) == (21, 20, 1)
    digest = inputs.data.facts.digest
    plan = plan_with_digests(plan, LocalFiles(data=data_file))
    assert (plan.data.samples, plan.data.digest, plan.model.digest) == (21, digest, None)
    made = build_payload(plan, LocalFiles(data=data_file))
    assert (made.samples, made.dropped, made.data_digest) == (20, 1, digest)


def test_data_that_changed_since_the_plan_is_refused(data_file: Path) -> None:
    plan = plan_with_digests(changed(data={"source": "file", "name": "own.jsonl"}), LocalFiles(data=data_file))
    data_file.write_text(data_file.read_text() + "\n")
    with pytest.raises(DataError) as caught:
        build_payload(plan, LocalFiles(data=data_file))
    assert caught.value.code == "data_changed"


def test_a_stand_in_contains_none_of_the_data(data_file: Path) -> None:
    data = {"source": "file", "name": "own.jsonl", "public": False}
    real = build_payload(changed(data=data, segments="protected", evaluation=None), LocalFiles(data=data_file))
    made = build_payload(changed(data={**data, "standIn": True}, evaluation=None), LocalFiles(data=data_file))
    ids, fake = (tensors(built, "tokens.safetensors") for built in (real, made))
    assert made.samples == real.samples
    assert ((ids["labels"] == -100) == (fake["labels"] == -100)).all()
    plain = ids["input_ids"] > 2
    assert (ids["input_ids"][plain] == fake["input_ids"][plain]).mean() < 0.02
    assert (ids["order"] == fake["order"]).all()


def test_a_folders_shards_are_packed_unchanged(model_folder: Path) -> None:
    plan = plan_with_digests(changed(model=FOLDER), LocalFiles(model=model_folder))
    made = build_payload(plan, LocalFiles(model=model_folder))
    assert made.files["weights-00001.safetensors"] == model_folder / "model.safetensors"
    assert "weights.safetensors" not in made.files
    assert made.model_digest == plan.model.digest
    assert made.files["config.json"] == (model_folder / "config.json").read_bytes()
    in_memory = sum(len(file) for file in made.files.values() if isinstance(file, bytes))
    on_disk = sum((model_folder / name).stat().st_size for name in ("model.safetensors", "tokenizer.json"))
    assert made.size() == in_memory + on_disk


def test_a_model_that_changed_since_the_plan_is_refused(model_folder: Path) -> None:
    plan = plan_with_digests(changed(model=FOLDER), LocalFiles(model=model_folder))
    config = read_config((model_folder / "config.json").read_bytes())[1]
    (model_folder / "model.safetensors").write_bytes(save(tiny_weights(10, config)))
    with pytest.raises(DataError) as caught:
        build_payload(plan, LocalFiles(model=model_folder))
    assert caught.value.code == "model_changed"


def test_missing_inputs_are_reported() -> None:
    with pytest.raises(DataError) as caught:
        build_payload(changed(model=FOLDER))
    assert caught.value.code == "model_folder_missing"
    with pytest.raises(DataError) as caught:
        build_payload(changed(data={"source": "file", "name": "own.jsonl"}))
    assert caught.value.code == "data_missing"


def test_a_length_above_the_models_positions_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        build_payload(changed(training={"maxLength": 513}))
    assert caught.value.code == "max_length_too_long"
    assert "512" in caught.value.hint
    assert "512 (max_position_embeddings)" in caught.value.message


@pytest.mark.parametrize(
    ("file", "changes", "limit"),
    [
        ("config.json", {"max_position_embeddings": 40}, "40 (max_position_embeddings)"),
        ("config.json", {"sliding_window": 40, "use_sliding_window": True}, None),
        ("tokenizer_config.json", {"model_max_length": 48}, "48 (model_max_length)"),
        ("tokenizer_config.json", {"model_max_length": 10**30}, None),
        ("tokenizer_config.json", {"model_max_length": "many"}, None),
    ],
    ids=str,
)
def test_each_limit_of_the_model_and_its_tokenizer_bounds_the_length(
    model_folder: Path, file: str, changes: dict[str, object], limit: str | None
) -> None:
    path = model_folder / file
    before = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps({**before, **changes}))
    plan = changed(model=FOLDER, training={"maxLength": 64})
    if limit is None:
        assert describe_inputs(plan, LocalFiles(model=model_folder)).report.used
        return
    with pytest.raises(DataError) as caught:
        describe_inputs(plan, LocalFiles(model=model_folder))
    assert caught.value.code == "max_length_too_long"
    assert limit in caught.value.message


def test_the_digest_of_a_folder_covers_config_tokenizer_and_weights(model_folder: Path) -> None:
    digest = describe_inputs(changed(model=FOLDER), LocalFiles(model=model_folder)).model_digest
    files = {
        name: hashlib.sha256((model_folder / name).read_bytes()).hexdigest()
        for name in ("config.json", "tokenizer.json", "model.safetensors")
    }
    assert digest == digest_of(files)


def test_the_tiny_payload_is_built_without_the_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from engine.payload.build import build_payload\n"
        "from engine.payload.inputs import plan_with_digests\n"
        "from engine.plan import preset\n"
        "build_payload(plan_with_digests(preset('demo')))\n"
        "heavy = {'torch', 'transformers', 'peft', 'huggingface_hub', 'textual', 'asyncssh', 'runpod'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_stand_ins_held_out_samples_are_not_its_training_samples(data_file: Path) -> None:
    data = {"source": "file", "name": "own.jsonl", "public": False, "standIn": True}
    made = tensors(
        build_payload(changed(data=data, evaluation={"source": "split", "percent": 20.0}), LocalFiles(data=data_file)),
        "tokens.safetensors",
    )
    trained = {tuple(row) for row in made["input_ids"].tolist()}
    assert not trained & {tuple(row) for row in made["held_out_ids"].tolist()}


@pytest.mark.parametrize(("epochs", "updates"), [(1.1, 110), (2.2, 220), (4.9, 490), (0.001, 1), (1.0, 100)])
def test_epochs_become_the_updates_that_cover_them(tmp_path: Path, epochs: float, updates: int) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f'{{"prompt": "{n}?", "completion": "{n}."}}\n' for n in range(1600)))
    training = {"batch": 4, "gradAccum": 4, "settlingSteps": 5, "maxLength": 32}
    plan = changed(
        data={"source": "file", "name": "own.jsonl"}, evaluation=None, training=training, target={"epochs": epochs}
    )
    made = plan_with_digests(plan, LocalFiles(data=path))
    assert (made.target.steps or 0) + made.training.settling_steps == updates
    assert made.training.settling_steps == min(5, updates // 2)
