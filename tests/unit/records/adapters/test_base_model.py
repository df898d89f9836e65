"""The base model of an adapter: shipped, a folder or from a hub, and never another than the run's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save

from engine.errors import GlasshouseError
from engine.measure.safetensors_header import read_header
from engine.payload.listing import INDEX, SINGLE
from engine.payload.model import describe_model, model_files
from engine.payload.tiny import shipped_weights
from engine.plan import Model, Plan, dump_plan, preset
from engine.records.adapters.base_model import FOLDER_FILE, Files, base_files, tiny_files, used_folder
from engine.system.resources import data_path
from engine.wire import digest_of
from tests.fake_hub import MODEL, REVISION, FakeHub, serving
from tests.needs import LOCAL_EXTRA

TINY = preset("demo")
HUB = msgspec.structs.replace(TINY, model=Model(source="hub", name=MODEL, revision=REVISION))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with the shipped model's files."""
    place = tmp_path / "model"
    place.mkdir()
    for name, content in tiny_files().items():
        assert isinstance(content, bytes)
        (place / name).write_bytes(content)
    (place / "tokenizer.json").write_bytes(data_path("tiny_model", "tokenizer.json").read_bytes())
    return place


def planned(folder: Path) -> Plan:
    """A plan that was made for the folder as it is."""
    plan = msgspec.structs.replace(TINY, model=Model(source="folder", name="own-model"))
    digest = model_files(plan, describe_model(plan, folder))[1]
    return msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, digest=digest))


def as_float32(weights: bytes) -> dict[str, Any]:
    """bfloat16 tensors as numpy has them: the upper halves of float32 values."""
    found = {}
    for name, spec in read_header(memoryview(weights)).items():
        upper = np.frombuffer(weights[spec.start : spec.end], "<u2").astype("<u4")
        found[name] = (upper << 16).view("<f4").reshape(spec.shape)
    return found


def contents(files: Files) -> dict[str, bytes]:
    return {name: one if isinstance(one, bytes) else one.read_bytes() for name, one in files.items()}


def refused(plan: Plan, digest: str | None, folder: Path | None) -> str:
    with pytest.raises(GlasshouseError) as caught:
        base_files(plan, digest, folder)
    assert caught.value.hint
    return caught.value.code


def test_the_shipped_model_is_the_one_that_the_run_used() -> None:
    digest = model_files(TINY, describe_model(TINY, None))[1]
    files = contents(base_files(TINY, digest, None))
    assert set(files) == {"config.json", SINGLE}
    assert files[SINGLE] == shipped_weights()[0]
    assert refused(TINY, "0" * 64, None) == "base_differs"


def test_a_folder_gives_configuration_and_weights_and_nothing_else_that_is_in_it(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{}")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "modeling.py").write_text("raise SystemExit")
    assert set(base_files(planned(folder), None, folder)) == {"config.json", SINGLE, "generation_config.json"}


def test_a_folder_in_shards_keeps_its_index(folder: Path) -> None:
    tensors = as_float32((folder / SINGLE).read_bytes())
    (folder / SINGLE).unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, own in shards.items():
        (folder / shard).write_bytes(save({name: tensors[name] for name in own}))
    weights = {name: shard for shard, own in shards.items() for name in own}
    (folder / INDEX).write_text(json.dumps({"weight_map": weights}))
    assert set(base_files(planned(folder), None, folder)) == {"config.json", INDEX, *shards}


def other_weights(folder: Path) -> None:
    tensors = as_float32((folder / SINGLE).read_bytes())
    (folder / SINGLE).write_bytes(save({**tensors, "model.norm.weight": np.zeros(128, np.float32)}))


def other_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))


def other_tokenizer(folder: Path) -> None:
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")


@pytest.mark.parametrize("change", [other_weights, other_config, other_tokenizer])
def test_another_model_is_refused(folder: Path, change: Callable[[Path], None]) -> None:
    plan = planned(folder)
    change(folder)
    assert refused(plan, None, folder) == "base_differs"


def test_a_folder_that_is_not_known_or_gone_is_asked_for(folder: Path, tmp_path: Path) -> None:
    plan = planned(folder)
    assert refused(plan, None, None) == "base_missing"
    assert refused(plan, None, tmp_path / "nowhere") == "model_folder_missing"


def test_a_generation_configuration_that_never_ends_is_refused(folder: Path) -> None:
    plan = planned(folder)
    os.mkfifo(folder / "generation_config.json")
    assert refused(plan, None, folder) == "model_config_invalid"


def test_the_folder_of_a_run_is_known_by_its_path(tmp_path: Path) -> None:
    assert used_folder(tmp_path) is None
    (tmp_path / FOLDER_FILE).write_bytes(os.fsencode("/odd/\udcff"))
    assert used_folder(tmp_path) == Path("/odd/\udcff")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    pytest.importorskip("huggingface_hub", reason=LOCAL_EXTRA)
    with serving() as server:
        yield server


SCRIPT = """
import json, sys
from engine.errors import GlasshouseError
from engine.measure.safetensors_header import read_header
from engine.plan import load_plan
from engine.records.adapters.base_model import base_files
try:
    files = base_files(load_plan(json.loads(sys.argv[1])), sys.argv[2], None)
    print(json.dumps({"files": sorted(files)}))
except GlasshouseError as error:
    print(json.dumps(error.as_dict()))
"""


def from_hub(hub: FakeHub, cache: Path, digest: str, **env: str) -> dict[str, Any]:
    """What a process with the hub's settings gets: the library reads them when it is imported."""
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **env}
    command = [sys.executable, "-c", SCRIPT, json.dumps(dump_plan(HUB)), digest]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def listing_digest(hub: FakeHub) -> str:
    import hashlib

    body = hub.files[SINGLE]
    files = {SINGLE: {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}}
    return digest_of({"id": MODEL, "revision": REVISION, "files": files})


def downloads(hub: FakeHub) -> list[str]:
    return [path for path, _ in hub.tokens if f"/{MODEL}/" in path]


def test_a_hub_model_is_downloaded_once_and_then_needs_no_hub(hub: FakeHub, tmp_path: Path) -> None:
    digest = listing_digest(hub)
    wanted = {"files": ["config.json", SINGLE]}
    assert from_hub(hub, tmp_path, digest) == wanted
    asked = downloads(hub)
    assert from_hub(hub, tmp_path, digest, HF_HUB_OFFLINE="1") == wanted
    assert from_hub(hub, tmp_path, digest) == wanted
    assert downloads(hub) == asked


def test_a_hub_model_that_is_not_here_and_not_reachable_is_refused_with_a_way_out(hub: FakeHub, tmp_path: Path) -> None:
    offline = from_hub(hub, tmp_path, listing_digest(hub), HF_HUB_OFFLINE="1")
    unreachable = from_hub(hub, tmp_path, listing_digest(hub), HF_ENDPOINT="http://127.0.0.1:9")
    assert (offline["code"], unreachable["code"]) == ("hub_offline", "hub_unreachable")
    assert "--base" in offline["hint"]
    assert "--base" in unreachable["hint"]


def test_a_hub_that_gives_other_weights_than_the_run_had_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    assert from_hub(hub, tmp_path, "0" * 64)["code"] == "base_differs"
