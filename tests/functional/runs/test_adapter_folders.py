"""A finished pair's adapter in use: loaded by the ecosystem's tools, merged, signed, and tied to its row."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.numpy import load_file

from engine.measure.safetensors_header import read_header
from engine.records.adapters.signature import SIGNATURE
from engine.records.adapters.signing import OPERATOR_CERTIFICATE, sign_folder
from engine.records.adapters.tie import Tie, tie
from engine.records.artifact import parse_artifact
from engine.records.trust import anchors
from engine.records.verify import Proven
from engine.sealing.operator_keys import OperatorKeys
from engine.store.views import RunView
from engine.system.resources import data_path
from engine.wire import sha256_hex
from tests.functional.command_line.conftest import CommandLine
from tests.functional.runs.support import Operator
from tests.needs import SIGNING_EXTRA

verifying: Any = pytest.importorskip("model_signing.verifying", reason=SIGNING_EXTRA)

Finished = tuple[Operator, RunView]
WEIGHTS = "adapter_model.safetensors"
CHAT = [{"role": "user", "content": "What is a lease?"}, {"role": "assistant", "content": "A bounded loan."}]
VLLM_MODULE = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>A|B)\.weight")


@dataclass(frozen=True)
class Opened:
    """One run's folders: with its base and signed, merged, raw and unsigned; and its exported row."""

    cli: CommandLine
    view: RunView
    with_base: Path
    merged: Path
    plain: Path
    row: Path

    @property
    def home(self) -> Path:
        """The operator's home."""
        return self.cli.home

    def tie(self, folder: Path, home: Path | None = None, **trust: Any) -> Tie:
        """The folder compared with the row, with the home's trust."""
        return tie(parse_artifact(self.row.read_bytes()), folder, anchors(home or self.home, **trust))


@pytest.fixture(scope="module")
def opened(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """The folders of the finished pair, written by the installed command."""
    operator, view = finished
    cli, base = CommandLine(operator.home), tmp_path_factory.mktemp("opened")
    run = view.summary.id
    commands: list[list[str | Path]] = [
        ["adapter", run, "-o", base / "with-base", "--with-base", "--sign"],
        ["adapter", run, "-o", base / "merged", "--merged", "--sign"],
        ["adapter", run, "-o", base / "plain", "--segment", "raw"],
        ["export", run, "-o", base / "row.json"],
    ]
    for command in commands:
        done = cli(*command, "--json")
        assert done.code == 0, done.out + done.err
    return Opened(cli, view, base / "with-base", base / "merged", base / "plain", base / "row.json")


def loss(model: Any, folder: Path) -> float:
    """The model's loss on a chat, as the folder's tokenizer and template encode it."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer.apply_chat_template(CHAT, tokenize=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return float(model(**encoded, labels=encoded["input_ids"]).loss)


def test_peft_loads_it_with_its_base_model_from_any_place(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    adapted = AutoPeftModelForCausalLM.from_pretrained(opened.with_base)
    moved = tmp_path / "moved"
    shutil.copytree(opened.with_base, moved)
    base = AutoModelForCausalLM.from_pretrained(moved / "base")
    bare = loss(base, moved)
    assert loss(adapted, opened.with_base) == loss(PeftModel.from_pretrained(base, moved), moved)
    assert abs(loss(adapted, moved) - bare) > 1e-3, "the adapter changes what the model says"


def test_a_pipeline_answers_a_chat(opened: Opened) -> None:
    from transformers import pipeline

    for folder in (opened.with_base, opened.merged):
        generate = pipeline("text-generation", model=str(folder))
        answered = generate(CHAT[:1], max_new_tokens=4, do_sample=False)[0]["generated_text"]
        assert [message["role"] for message in answered] == ["user", "assistant"]


def names_in(weights: Path) -> set[str]:
    """The tensors of a weight file, whatever their type."""
    return set(read_header(memoryview(weights.read_bytes())))


def test_the_merged_model_computes_what_the_adapter_does(opened: Opened) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    adapted = AutoPeftModelForCausalLM.from_pretrained(opened.with_base)
    merged = AutoModelForCausalLM.from_pretrained(opened.merged)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert type(merged).__name__ == "Qwen2ForCausalLM"
    assert loss(merged, opened.merged) == pytest.approx(loss(adapted, opened.with_base), abs=0.05)
    assert names_in(opened.merged / "model.safetensors") == names_in(opened.with_base / "base" / "model.safetensors")


def test_vllm_accepts_what_its_own_checks_read(opened: Opened) -> None:
    """`PEFTHelper` and `parse_fine_tuned_lora_name` of vLLM, which cannot be installed for a test."""
    config = json.loads((opened.with_base / "adapter_config.json").read_bytes())
    assert isinstance(config["r"], int)
    assert 0 < config["r"] <= 16, "vLLM's --max-lora-rank is 16 by default"
    assert isinstance(config["lora_alpha"], int)
    targets = config["target_modules"]
    assert all(isinstance(target, str) for target in targets)
    assert config["bias"] == "none"
    assert not (config.get("modules_to_save") or config.get("use_dora") or config.get("use_rslora"))
    found = [VLLM_MODULE.fullmatch(name) for name in load_file(opened.with_base / WEIGHTS)]
    assert all(match is not None and match["module"].rsplit(".", 1)[1] in targets for match in found)
    assert {name.split("lora_")[1][0] for name in load_file(opened.with_base / WEIGHTS)} == {"A", "B"}


def test_the_tokenizer_and_template_are_those_of_the_training(opened: Opened) -> None:
    shipped = data_path("tiny_model", "tokenizer.json").read_bytes()
    config = json.loads(data_path("tiny_model", "tokenizer_config.json").read_bytes())
    for folder in (opened.with_base, opened.with_base / "base", opened.merged, opened.plain):
        assert (folder / "tokenizer.json").read_bytes() == shipped
        assert (folder / "chat_template.jinja").read_text() == config["chat_template"]


def test_the_card_says_what_the_row_says(opened: Opened) -> None:
    from huggingface_hub import ModelCard

    row = opened.view.row
    assert row is not None
    card: Any = ModelCard((opened.with_base / "README.md").read_text())
    assert card.data.to_dict() == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "glasshouse"],
    }
    stated = (row["id"], row["planDigest"], row["dataDigest"], row["protectedAdapterSha256"], str(row["seed"]))
    assert [fact for fact in stated if fact not in card.text] == []
    assert "The row is clean" in card.text
    assert "Software tier" in card.text
    assert row["rawAdapterSha256"] in (opened.plain / "README.md").read_text()
    assert "no row describes it" in (opened.merged / "README.md").read_text()


def test_the_published_tool_accepts_both_signed_folders(opened: Opened) -> None:
    for folder in (opened.with_base, opened.merged):
        config = verifying.Config().use_certificate_verifier(certificate_chain=[folder / OPERATOR_CERTIFICATE])
        config.verify(folder, folder / SIGNATURE)
        assert (folder / OPERATOR_CERTIFICATE).read_bytes() == (opened.merged / OPERATOR_CERTIFICATE).read_bytes()


def test_verify_ties_a_signed_folder_to_its_row_and_its_operator(opened: Opened) -> None:
    done = opened.cli("verify", opened.row, "--adapter", opened.with_base, "--json")
    found = done.document["adapter"]
    assert (done.code, found["tied"], found["signed"], found["segment"]) == (0, True, True, "protected")
    assert {proof["status"] for proof in found["proofs"]} <= {"passed", "not_applicable"}
    assert found["signer"] == OperatorKeys.load(opened.home / "keys").signing_fingerprint
    text = opened.cli("verify", opened.row, "--adapter", opened.with_base).out
    assert "The folder holds the row's protected adapter, signed by SHA256:" in text


def test_an_unsigned_folder_is_tied_by_its_digest_and_never_shown_as_fine(opened: Opened) -> None:
    done = opened.cli("verify", opened.row, "--adapter", opened.plain, "--json")
    found = done.document["adapter"]
    assert (done.code, found["tied"], found["signed"], found["segment"]) == (3, True, False, "raw")
    signature = next(proof for proof in found["proofs"] if proof["name"] == "adapter_signature")
    assert (signature["status"], signature["code"]) == ("unknown", "adapter_unsigned")


def test_a_merged_folder_and_what_is_no_folder_are_refused(opened: Opened, tmp_path: Path) -> None:
    for folder, code in ((opened.merged, "adapter_merged"), (tmp_path, "adapter_folder_unusable")):
        opened.cli("verify", opened.row, "--adapter", folder, "--json").refused(2, code)
    opened.cli("verify", opened.row, opened.row, "--adapter", opened.plain, "--json").refused(2, "usage")


def other_weights(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def other_config(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 32}))


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ 'evil' }}")


def other_base(folder: Path) -> None:
    weights = folder / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


def code_in_base(folder: Path) -> None:
    (folder / "base" / "modeling.py").write_text("import os")


def more_in_base(folder: Path) -> None:
    (folder / "base" / "adapter_config.json").write_text("{}")


def one_more(folder: Path) -> None:
    (folder / "notes.txt").write_text("notes")


def one_less(folder: Path) -> None:
    (folder / "README.md").unlink()


def a_link(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(data_path("presets.json"))


def a_fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def damaged(folder: Path) -> None:
    (folder / SIGNATURE).write_text("{}")


def endless(folder: Path) -> None:
    (folder / SIGNATURE).unlink()
    os.mkfifo(folder / SIGNATURE)


def signed_by_a_stranger(folder: Path) -> None:
    (folder / SIGNATURE).unlink()
    (folder / OPERATOR_CERTIFICATE).unlink()
    sign_folder(folder, OperatorKeys.generate(), run_id="a1b2c3d4e5f6")


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (other_weights, {"adapter_other", "adapter_file_changed"}),
        (other_config, {"adapter_config_differs", "adapter_file_changed"}),
        (other_template, {"adapter_file_changed", "adapter_template_differs"}),
        (other_base, {"adapter_base_differs", "adapter_file_changed"}),
        (code_in_base, {"adapter_base_differs", "adapter_file_unsigned"}),
        (more_in_base, {"adapter_base_differs", "adapter_file_unsigned"}),
        (one_more, {"adapter_file_unsigned"}),
        (one_less, {"adapter_file_missing"}),
        (a_link, {"adapter_file_refused"}),
        (a_fifo, {"adapter_file_refused"}),
        (damaged, {"model_signature_malformed"}),
        (endless, {"adapter_file_unreadable"}),
        (signed_by_a_stranger, {"signer_unknown"}),
    ],
)
def test_a_changed_folder_is_refused_with_a_code_and_a_hint(
    opened: Opened, tmp_path: Path, change: Callable[[Path], None], codes: set[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(opened.with_base, folder)
    change(folder)
    result = opened.tie(folder)
    failed = [proof for proof in result.proofs if proof.status == "failed"]
    assert {proof.code for proof in failed} == codes
    assert all(proof.hint for proof in failed)
    assert not result.tied


def test_a_template_is_compared_with_the_one_that_the_plan_states(opened: Opened, tmp_path: Path) -> None:
    """In an unsigned folder it is all that ties the template to the training."""
    artifact = parse_artifact(opened.row.read_bytes())
    assert artifact.bundle is not None
    text = (opened.plain / "chat_template.jinja").read_text()
    digest = sha256_hex(json.dumps({"default": text}).encode())
    counts = {"used": 1, "dropped": 0, "cut": 0, "tokens": 1, "answerTokens": 1, "answerTokensKept": 1}
    data = {**artifact.bundle.plan["data"], "counts": {**counts, "template": digest}}
    bundle = msgspec.structs.replace(artifact.bundle, plan={**artifact.bundle.plan, "data": data})
    stated = msgspec.structs.replace(artifact, bundle=bundle)
    folder = tmp_path / "copy"
    shutil.copytree(opened.plain, folder)
    assert "trained with" in proof_of(tie(stated, folder, anchors(opened.home)), "adapter_template").reason
    other_template(folder)
    assert proof_of(tie(stated, folder, anchors(opened.home)), "adapter_template").code == "adapter_template_differs"


def proof_of(result: Tie, name: str) -> Proven:
    """One proof by its name."""
    return next(proof for proof in result.proofs if proof.name == name)


def test_a_changed_folder_is_refused_by_the_command(opened: Opened, tmp_path: Path) -> None:
    shutil.copytree(opened.with_base, tmp_path / "copy")
    other_template(tmp_path / "copy")
    done = opened.cli("verify", opened.row, "--adapter", tmp_path / "copy")
    assert done.code == 1
    assert "NOT TIED to this row: adapter_template_differs, adapter_file_changed." in done.out


def test_what_a_repository_adds_to_a_folder_is_left_out(opened: Opened, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(opened.with_base, folder)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    assert opened.tie(folder).tied


def test_another_home_needs_to_trust_the_operator(opened: Opened, tmp_path: Path) -> None:
    home = tmp_path / "home"
    stranger = opened.tie(opened.with_base, home)
    assert [proof.code for proof in stranger.proofs if proof.status == "failed"] == ["signer_unknown"]
    named = opened.tie(opened.with_base, home, trust=[str(stranger.signer)])
    assert named.tied
    assert "the row's operator" in named.proofs[-1].reason


def test_a_folder_signed_after_a_rotation_is_tied_and_one_of_a_compromised_key_is_not(
    opened: Opened, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(opened.home, home, ignore=shutil.ignore_patterns("local", "runs", "*.sock"))
    cli, run = CommandLine(home), opened.view.summary.id
    assert cli("key", "rotate", "--yes").code == 0
    assert cli("adapter", run, "-o", tmp_path / "later", "--sign").code == 0
    later = opened.tie(tmp_path / "later", home)
    assert later.tied
    assert "a later key of the row's operator" in later.proofs[-1].reason
    assert opened.tie(opened.with_base, home).tied, "signed while the former key was in use"
    assert cli("key", "revoke", str(opened.tie(opened.with_base).signer), "--reason", "compromised").code == 0
    revoked = opened.tie(opened.with_base, home)
    assert [proof.code for proof in revoked.proofs if proof.status == "failed"] == ["signer_revoked"]
