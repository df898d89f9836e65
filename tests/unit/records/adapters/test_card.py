"""The model card: what the row says, and nothing that a plan does not publish."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engine.plan import Data, DataCounts, Model, Plan, preset
from engine.records.adapters.card import Subject, model_card

TINY = preset("demo")
HUB = msgspec.structs.replace(TINY, model=Model(source="hub", name="org/some_model", revision="a" * 40))
ROW: dict[str, Any] = {
    "id": "a1b2c3d4e5f6",
    "label": "mine",
    "planDigest": "1" * 64,
    "protectedAdapterSha256": "2" * 64,
    "overheadPct": 1.5,
    "verdict": "not resolved",
    "clean": True,
    "checks": [],
    "version": "0.1.0",
}


def card(plan: Plan = TINY, row: dict[str, Any] | None = None, **changes: Any) -> str:
    """The card of a folder without base and signature, unless changed."""
    subject = Subject(
        plan=plan,
        row=ROW | (row or {}),
        kind="protected",
        lock={"torch": "2.13.0"},
        merged=False,
        beside=False,
        signed=False,
        missing=(),
    )
    return model_card(msgspec.structs.replace(subject, **changes)).decode()


def front(text: str) -> list[str]:
    """The lines of the YAML front matter."""
    assert text.startswith("---\n")
    return text.split("---\n")[1].splitlines()


@pytest.mark.parametrize(
    ("merged", "library", "relation"), [(False, "peft", "adapter"), (True, "transformers", "finetune")]
)
def test_a_hub_model_is_named_as_the_base(merged: bool, library: str, relation: str) -> None:
    text = card(HUB, merged=merged)
    lines = front(text)
    assert 'base_model: "org/some_model"' in lines
    assert f"base_model_relation: {relation}" in lines
    assert f"library_name: {library}" in lines
    assert "pipeline_tag: text-generation" in lines
    assert "a" * 40 in text


def test_another_base_is_described_and_not_named_in_the_front_matter() -> None:
    assert not any(line.startswith("base_model") for line in front(card()))
    own = msgspec.structs.replace(TINY, model=Model(source="folder", name="own-model", digest="3" * 64))
    assert "3" * 64 in card(own)


def test_own_data_is_stated_by_digest_and_counts_alone() -> None:
    counts = DataCounts(
        used=90, dropped=7, cut=3, tokens=5000, answer_tokens=2000, answer_tokens_kept=1900, template="5" * 64
    )
    data = Data(source="file", name="canary-name", digest="4" * 64, samples=97, public=False, counts=counts)
    text = card(msgspec.structs.replace(TINY, data=data))
    assert "canary" not in text
    for stated in ("4" * 64, "| used | 90 |", "| dropped | 7 |", "| cut | 3 |", "1,900 of 2,000", "5" * 64):
        assert stated in text


def test_the_whole_recipe_is_stated() -> None:
    text = card()
    for name in (*TINY.training.__struct_fields__, "seed"):
        assert f"| {name.replace('_', ' ')} |" in text
    assert f"| seed | {TINY.seed} |" in text
    assert f"| LoRA rank | {TINY.lora.r} |" in text
    assert "`q_proj`, `k_proj`" in text


def test_it_claims_no_more_than_the_row() -> None:
    failed = {"name": "times_consistent", "group": "lifecycle", "status": "failed", "reason": ""}
    waits = {"name": "allocation_gone", "group": "lifecycle", "status": "pending", "reason": ""}
    text = card(row={"clean": False, "checks": [failed, waits]})
    assert "not clean" in text
    assert "`times_consistent` (failed), `allocation_gone` (pending)" in text
    assert "The row is clean" not in text
    assert "not final" in card(row={"clean": None})
    assert "Software tier" in card()
    assert "+1.50 % (not resolved)" in card()


def test_a_label_is_shown_and_does_nothing() -> None:
    text = card(row={"label": "<img src=x> **bold** | `code` \x1b[2J"})
    title = next(line for line in text.splitlines() if line.startswith("# "))
    assert title == r"# \<img src=x\> \*\*bold\*\* \| \`code\` \\x1b\[2J: LoRA adapter"


def test_a_hub_models_name_cannot_add_to_the_front_matter() -> None:
    name = 'x"\nlicense: mit\ny: "'
    plan = msgspec.structs.replace(HUB, model=msgspec.structs.replace(HUB.model, name=name))
    assert f"base_model: {json.dumps(name)}" in front(card(plan))
    assert not any(line.startswith("license") for line in front(card(plan)))


def test_the_way_to_load_it_is_the_folders_own() -> None:
    assert "AutoPeftModelForCausalLM" in card(HUB)
    assert 'from_pretrained("DIR/base")' in card(beside=True)
    assert "peft" not in card(merged=True).split("```")[1]
    assert "tokenizer.json" in card(missing=("tokenizer.json",))
    assert "model_signing verify certificate" in card(signed=True)
    assert "model_signing" not in card()
