"""Hostile artifacts under a limit of 512 MiB of address space and a generous one of processor time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz.bounded import verified
from tests.fuzz.hostile_artifacts import HOSTILE, STORED, honest, signed, with_steps

CPU_SECONDS = 60
"""Ten times what the most expensive of them takes: an artifact without this change took minutes, or all memory."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_artifact_is_refused_in_bounded_memory(name: str, tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    file.write_bytes(HOSTILE[name]())
    found = verified(file, cpu=CPU_SECONDS)
    assert set(found["codes"].values()) - {"passed", "not_checked", "not_applicable"}
    assert not [reason for reason in found["reasons"] if "MemoryError" in reason or "RecursionError" in reason]


def test_nothing_else_is_looked_at_once_a_signature_is_not_valid(tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    file.write_text(json.dumps(with_steps(12_000)))
    codes = verified(file, cpu=CPU_SECONDS)["codes"]
    assert (codes.pop("signer"), codes.pop("delegation")) == ("signer_unknown", "delegation_other_run")
    assert codes.pop("run_receipt") != "passed"
    assert set(codes.values()) == {"not_checked"}


def test_a_series_is_not_inflated_beyond_the_steps_in_the_log(tmp_path: Path) -> None:
    document = with_steps(1_000_000)
    for entry in document["bundle"]["logs"]["pod"]:
        if entry["event"] == "train.progress":
            entry["body"]["to"] = 20
    file = tmp_path / "row.json"
    file.write_text(json.dumps(signed(document)))
    found = verified(file, cpu=CPU_SECONDS)
    assert (found["codes"]["series"], found["codes"]["row"]) == ("series_mismatch", "series_mismatch")
    assert any("1000000 steps, and log and plan allow 20" in reason for reason in found["reasons"])


def test_a_series_is_not_inflated_beyond_the_steps_of_the_plan(tmp_path: Path) -> None:
    document = with_steps(1_000_000)
    document["bundle"]["plan"]["target"] = {"seconds": None, "steps": 3}
    file = tmp_path / "row.json"
    file.write_text(json.dumps(signed(document)))
    found = verified(file, cpu=CPU_SECONDS)
    assert found["codes"]["series"] == "series_mismatch"
    assert any("log and plan allow 3" in reason for reason in found["reasons"])


def test_the_honest_artifact_takes_little(tmp_path: Path) -> None:
    found = verified(STORED, cpu=CPU_SECONDS, address_space=256 * 1024 * 1024)
    assert found["codes"]["row"] == "passed"
    assert honest()["bundle"]["plan"]["target"]["steps"] == 20
