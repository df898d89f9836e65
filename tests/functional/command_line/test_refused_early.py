"""Refused before anything is rented, entered or trained: the installed command, a hub on loopback, the fake RunPod."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.payload.listing import SINGLE
from engine.store.home import database_path
from engine.system.resources import data_path
from tests.fake_hub import MODEL, REVISION, TOKEN, FakeHub, serving
from tests.needs import LOCAL_EXTRA

if TYPE_CHECKING:
    from tests.fake_runpod.client import FakeRunPod
    from tests.functional.command_line.conftest import CommandLine

pytest.importorskip("torch", reason=LOCAL_EXTRA)
SMALL_GPU = "NVIDIA RTX A2000"
LARGE_GPU = "NVIDIA GeForce RTX 4090"
CONFIG = "[runpod]\nmax_cost = 1.0\ncalls_per_minute = 600\n"


class Desk:
    """An operator with a RunPod account at the fake and a hub; `login` is the operator's token at the hub, if any."""

    def __init__(self, cli: CommandLine, hub: FakeHub, fake: FakeRunPod, cache: Path) -> None:
        self.cli = cli
        self.hub = hub
        self.fake = fake
        self.env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), **fake.environment()}
        self.options = ["--segments", "pair", "--steps", "5", "--max-length", "64"]
        self.model = ["--model", MODEL, "--revision", REVISION]
        self.where = ["--provider", "runpod", "--gpu", LARGE_GPU]

    def run(self, *more: str) -> Any:
        """`run --json` with this desk's options and `more`."""
        words = [*self.model, *self.options, *self.where, *more]
        return self.cli("run", *words, "--json", env=self.env)

    def nothing_happened(self) -> None:
        """No run was entered, nothing is in the ledger, no pod was ever created, and no token is anywhere."""
        assert self.fake.ever() == []
        path = database_path(self.cli.home)
        if path.exists():
            with sqlite3.connect(path) as db:
                assert db.execute("SELECT count(*) FROM runs WHERE source = 'mine'").fetchone() == (0,)
                assert db.execute("SELECT count(*) FROM allocations").fetchone() == (0,)
        for one in self.cli.home.rglob("*"):
            assert not one.is_file() or TOKEN.encode() not in one.read_bytes()


@pytest.fixture
def desk(cli: CommandLine, fake_runpod: FakeRunPod, tmp_path: Path) -> Iterator[Desk]:
    cli.home.mkdir(mode=0o700)
    (cli.home / "config.toml").write_text(CONFIG)
    with serving() as hub:
        yield Desk(cli, hub, fake_runpod, tmp_path / "hub-cache")


def gated(desk: Desk) -> None:
    desk.hub.gated = "manual"


def private(desk: Desk) -> None:
    desk.hub.private = True
    desk.env["HF_TOKEN"] = TOKEN


def absent(desk: Desk) -> None:
    desk.model[1] = "someone/else"


def weights_closed(desk: Desk) -> None:
    desk.hub.closed = True


def other_revision(desk: Desk) -> None:
    desk.model[3] = "c" * 40


def rate_limited(desk: Desk) -> None:
    desk.hub.fault = (429, "")


def offline(desk: Desk) -> None:
    desk.env["HF_HUB_OFFLINE"] = "1"


def unreachable(desk: Desk) -> None:
    desk.env["HF_ENDPOINT"] = "http://127.0.0.1:9"


def pickled(desk: Desk) -> None:
    desk.hub.files["pytorch_model.bin"] = desk.hub.files.pop(SINGLE)


def no_safetensors(desk: Desk) -> None:
    del desk.hub.files[SINGLE]


def remote_code(desk: Desk) -> None:
    desk.hub.change_config(auto_map={"AutoModelForCausalLM": "modeling.X"})


def quantised(desk: Desk) -> None:
    desk.hub.change_config(quantization_config={"bits": 4})


def other_architecture(desk: Desk) -> None:
    desk.hub.change_config(model_type="mamba", architectures=["MambaForCausalLM"])


def too_long(desk: Desk) -> None:
    desk.options += ["--max-length", "513"]


def weights_missing(desk: Desk) -> None:
    desk.hub.change_config(tie_word_embeddings=False)


def too_large_for_the_gpu(desk: Desk) -> None:
    desk.hub.become_large()
    desk.where[-1] = f"{LARGE_GPU},{SMALL_GPU}"


def too_large_for_the_disk(desk: Desk) -> None:
    desk.hub.become_large()
    (desk.cli.home / "config.toml").write_text(CONFIG + "disk_gb = 10\n")


def too_large_for_this_disk(desk: Desk) -> None:
    desk.hub.sizes[SINGLE] = 10**16
    desk.where = ["--provider", "local"]


def large_on_a_processor(desk: Desk) -> None:
    desk.hub.become_large()
    desk.where = ["--provider", "local"]


@pytest.mark.parametrize(
    ("change", "code", "names"),
    [
        (gated, "hub_gated", "--model"),
        (weights_closed, "hub_gated", "--model"),
        (private, "hub_private", "--model"),
        (absent, "hub_model_unknown", "--model"),
        (other_revision, "hub_revision_unknown", "c" * 40),
        (rate_limited, "hub_rate_limited", "rate limit"),
        (offline, "hub_offline", "HF_HUB_OFFLINE"),
        (unreachable, "hub_unreachable", "--model"),
        (pickled, "model_pickled", "safetensors"),
        (no_safetensors, "model_no_safetensors", "safetensors"),
        (remote_code, "model_remote_code", "code"),
        (quantised, "model_quantised", "bfloat16"),
        (other_architecture, "architecture_unsupported", "qwen3"),
        (too_long, "max_length_too_long", "512"),
        (weights_missing, "model_weights_missing", "lm_head.weight"),
        (too_large_for_the_gpu, "model_too_large", "6.0 GiB"),
        (too_large_for_the_disk, "disk_too_small", "disk_gb"),
        (too_large_for_this_disk, "disk_too_small", "HF_HOME"),
        (large_on_a_processor, "model_needs_gpu", "--provider runpod"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_anything_is_rented_or_entered(
    desk: Desk, change: Callable[[Desk], None], code: str, names: str
) -> None:
    change(desk)
    failure = desk.run().refused(2, code)
    assert names in failure["message"] + failure["hint"]
    desk.nothing_happened()


def test_a_gpu_that_nobody_offers_is_refused_before_the_run_is_entered(desk: Desk) -> None:
    desk.where[-1] = "RTX 4900"
    for more in ([], ["--dry-run"]):
        failure = desk.run(*more).refused(1, "no_acceptable_gpu")
        assert "RTX 4090" in failure["message"] + failure["hint"]
        desk.nothing_happened()


def test_a_dry_run_checks_the_same_and_leaves_nothing(desk: Desk) -> None:
    done = desk.run("--dry-run")
    assert done.code == 0, done.out + done.err
    document = done.document
    size = len(desk.hub.files[SINGLE])
    assert (document["dryRun"], document["model"]["downloadBytes"], document["model"]["dtype"]) == (True, size, "F32")
    assert document["data"]["samples"] > 100
    (memory,) = document["memory"]
    assert (memory["device"], memory["kind"], memory["bytes"]) == ("RTX 4090", "cuda", 24 * 1024**3)
    parts = memory["estimate"]
    assert parts["total"] == sum(parts[name] for name in ("weights", "adapter", "activations", "runtime"))
    assert document["price"]["pricePerHour"] == 0.69
    assert any("login" in one for one in document["unchecked"])
    assert {token for _, token in desk.hub.tokens} == {None}
    desk.nothing_happened()
    gated(desk)
    desk.run("--dry-run").refused(2, "hub_gated")
    desk.nothing_happened()


def test_a_dry_run_says_what_it_could_not_check(desk: Desk, tmp_path: Path) -> None:
    offline(desk)
    done = desk.run("--dry-run")
    assert done.code == 0, done.out + done.err
    document = done.document
    assert (document["model"], document["memory"]) == (None, [])
    assert any("HF_HUB_OFFLINE" in one for one in document["unchecked"])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a"}\n')
    desk.run("--dry-run", "--data", str(broken), "--public-data").refused(2, "data_shape_invalid")


def test_a_folder_is_checked_by_the_same_rules(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", SINGLE):
        (folder / name).write_bytes(desk.hub.files[name])
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 60}))
    desk.model = ["--model", str(folder)]
    assert "60" in desk.run().refused(2, "max_length_too_long")["message"]
    config = json.loads(data_path("tiny_model", "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    desk.run().refused(2, "architecture_unsupported")
    desk.nothing_happened()
