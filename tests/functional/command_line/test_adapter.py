"""`adapter`: sealed files decrypted with the operator's key, completely or not at all."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load, save

from engine.payload.adapter_config import planned
from engine.payload.tokenizer_files import TokenizerFiles
from engine.plan import preset
from engine.records.adapters.tokenizers import TOKENIZER_FILE, keep_tokenizer
from engine.sealing.adapter import AdapterBinding, seal_adapter
from engine.sealing.operator_keys import OperatorKeys
from engine.wire import sha256_hex

if TYPE_CHECKING:
    from tests.functional.command_line.conftest import CommandLine

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
CONFIG = planned(preset("demo"))
TOKENIZER = TokenizerFiles(
    tokenizer=b"{}",
    tokenizer_config=b'{"chat_template": "{{ other }}", "eos_token": "<|im_end|>"}',
    chat_template=b"{{ messages }}",
    extras={"special_tokens_map.json": b"{}"},
)


def artifact(value: float) -> bytes:
    """A small adapter."""
    data: bytes = save({NAME: np.full((8, 4), value, dtype=np.float32)})
    return data


@pytest.fixture
def collected(cli: CommandLine) -> Path:
    """The folder of a finished pair's adapters, as a runner stores them."""
    keys = OperatorKeys.ensure(cli.home / "keys")
    folder = cli.home / "adapters" / cli.run_id
    with cli.enter_run(owner=os.getpid()) as writer:
        folder.mkdir(parents=True)
        (folder / TOKENIZER_FILE).write_text(keep_tokenizer(cli.home, TOKENIZER))
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
        (folder / "raw.safetensors").write_bytes(artifact(1.0))
        writer.segment(cli.run_id, "raw", adapter_sha256=sha256_hex(artifact(1.0)))
        binding = AdapterBinding(cli.run_id, "protected", "a" * 64, "b" * 64)
        with (folder / "protected.sealed").open("wb") as out:
            key = bytearray(os.urandom(32))
            seal_adapter(memoryview(artifact(2.0)), keys.recipient_public, binding, key, out)
        writer.segment(cli.run_id, "protected", adapter_sha256=sha256_hex(artifact(2.0)))
        writer.finish(cli.run_id, {"id": cli.run_id, "clean": True}, [])
    return folder


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize(("options", "value"), [([], 2.0), (["--segment", "raw"], 1.0)])
def test_an_adapter_becomes_a_peft_folder(cli: CommandLine, tmp_path: Path, options: list[str], value: float) -> None:
    target = tmp_path / "out"
    done = cli("adapter", "last", "-o", target, *options, "--json")
    assert done.code == 0, done.out
    assert done.document["folder"] == str(target)
    files = sorted(file.name for file in target.iterdir())
    assert files == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (done.document["files"], done.document["missing"], done.document["signedBy"]) == (files, [], None)
    assert target.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o600}
    tensors = load((target / "adapter_model.safetensors").read_bytes())
    assert tensors[NAME].tolist() == [[value] * 4] * 8
    assert json.loads((target / "adapter_config.json").read_text()) == CONFIG
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.usefixtures("collected")
def test_the_folder_has_the_one_chat_template_of_the_run(cli: CommandLine, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert cli("adapter", "last", "-o", target).code == 0
    assert (target / "chat_template.jinja").read_bytes() == b"{{ messages }}"
    assert json.loads((target / "tokenizer_config.json").read_text()) == {"eos_token": "<|im_end|>"}
    assert (target / "tokenizer.json").read_bytes() == b"{}"


def test_an_old_run_opens_and_says_what_was_not_kept(cli: CommandLine, collected: Path, tmp_path: Path) -> None:
    (collected / TOKENIZER_FILE).unlink()
    target = tmp_path / "out"
    done = cli("adapter", "last", "-o", target, "--json")
    assert done.code == 0, done.out
    absent = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    assert done.document["missing"] == absent
    assert all(name in (target / "README.md").read_text() for name in absent)
    assert {file.name for file in target.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    again = cli("adapter", "last", "-o", tmp_path / "again")
    assert "Not kept with this run: tokenizer.json" in again.out


@pytest.mark.usefixtures("collected")
def test_a_run_with_an_older_plan_still_opens(cli: CommandLine, tmp_path: Path) -> None:
    with sqlite3.connect(cli.home / "glasshouse.db") as db:
        db.execute("UPDATE plans SET body = json_set(body, '$.version', 1, '$.training.other', 5)")
    target = tmp_path / "out"
    cli("adapter", "last", "-o", target, "--with-base", "--json").refused(2, "plan_older")
    done = cli("adapter", "last", "-o", target, "--json")
    assert done.code == 0, done.out + done.err
    assert (target / "adapter_model.safetensors").read_bytes() == artifact(2.0)
    assert "An earlier version" in (target / "README.md").read_text()


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize(
    "options",
    [["--merged", "--with-base"], ["--base", "some"], ["--merged", "--base", "some"]],
    ids=" ".join,
)
def test_options_that_do_not_fit_are_refused_before_anything_is_opened(
    cli: CommandLine, tmp_path: Path, options: list[str]
) -> None:
    for file in (cli.home / "keys").iterdir():
        file.unlink()
    cli("adapter", "last", "-o", tmp_path / "out", *options, "--json").refused(2, "usage")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize(
    ("option", "library"), [("--merged", "peft"), ("--sign", "model_signing"), ("--sign", "OpenSSL")]
)
def test_a_missing_extra_is_named_before_anything_is_opened(
    cli: CommandLine, tmp_path: Path, option: str, library: str
) -> None:
    for file in (cli.home / "keys").iterdir():
        file.unlink()
    script = f"import sys; sys.modules[{library!r}] = None; from glasshouse_tui.cli import main; sys.exit(main())"
    done = cli.python(script, "adapter", "last", "-o", str(tmp_path / "out"), option, "--json")
    failure = done.refused(2, "extra_missing")
    assert "glasshouse[" in failure["hint"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changed", [{**CONFIG, "r": 4}, {**CONFIG, "use_rslora": True}, "text"])
def test_a_replaced_configuration_is_refused_and_nothing_is_written(
    cli: CommandLine, collected: Path, tmp_path: Path, changed: object
) -> None:
    (collected / "adapter_config.json").write_text(json.dumps(changed))
    code = "adapter_config_differs" if isinstance(changed, dict) else "adapter_config_malformed"
    cli("adapter", "last", "-o", tmp_path / "out", "--json").refused(1, code)
    assert not (tmp_path / "out").exists()


def test_a_replaced_tokenizer_is_refused_and_nothing_is_written(
    cli: CommandLine, collected: Path, tmp_path: Path
) -> None:
    digest = (collected / TOKENIZER_FILE).read_text()
    (cli.home / "tokenizers" / digest / "chat_template.jinja").write_text("{{ evil }}")
    cli("adapter", "last", "-o", tmp_path / "out", "--json").refused(1, "tokenizer_changed")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("collected")
def test_a_nonempty_folder_is_refused_and_an_empty_one_is_used(cli: CommandLine, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("mine")
    cli("adapter", "last", "-o", target, "--json").refused(2, "folder_occupied")
    assert [entry.name for entry in target.iterdir()] == ["mine"]
    (target / "mine").unlink()
    assert cli("adapter", "last", "-o", target).code == 0


def test_a_replaced_adapter_is_refused_and_nothing_is_written(
    cli: CommandLine, collected: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    (collected / "raw.safetensors").write_bytes(artifact(3.0))
    cli("adapter", "last", "-o", target, "--segment", "raw", "--json").refused(1, "adapter_differs")
    sealed = bytearray((collected / "protected.sealed").read_bytes())
    sealed[-1] ^= 1
    (collected / "protected.sealed").write_bytes(sealed)
    cli("adapter", "last", "-o", target, "--json").refused(1, "adapter_tampered")
    assert not target.exists()


@pytest.mark.usefixtures("collected")
def test_an_adapter_opens_after_the_keys_were_rotated_twice(cli: CommandLine, tmp_path: Path) -> None:
    assert cli("key", "rotate", "--yes").code == cli("key", "rotate", "--yes", "--recipient").code == 0
    done = cli("adapter", "last", "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.out
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == artifact(2.0)


@pytest.mark.usefixtures("collected")
def test_other_keys_do_not_open_an_adapter(cli: CommandLine, tmp_path: Path) -> None:
    for file in (cli.home / "keys").iterdir():
        file.unlink()
    cli("adapter", "last", "-o", tmp_path / "out", "--json").refused(1, "key_missing")
    OperatorKeys.ensure(cli.home / "keys")
    cli("adapter", "last", "-o", tmp_path / "out", "--json").refused(1, "adapter_wrong_key")
    assert not (tmp_path / "out").exists()


def test_an_adapter_sealed_for_another_run_is_refused(cli: CommandLine, collected: Path, tmp_path: Path) -> None:
    keys = OperatorKeys.load(cli.home / "keys")
    binding = AdapterBinding("0123456789ab", "protected", "a" * 64, "b" * 64)
    with (collected / "protected.sealed").open("wb") as out:
        key = bytearray(os.urandom(32))
        seal_adapter(memoryview(artifact(2.0)), keys.recipient_public, binding, key, out)
    cli("adapter", "last", "-o", tmp_path / "out", "--json").refused(1, "adapter_wrong_binding")


def test_a_missing_adapter_is_reported(cli: CommandLine, tmp_path: Path) -> None:
    cli.enter_run(owner=os.getpid()).close()
    cli("adapter", "last", "-o", tmp_path / "out", "--json").refused(1, "adapter_missing")
    cli("adapter", "pub-lora-7b-30k", "-o", tmp_path / "out", "--json").refused(2, "adapter_missing")
