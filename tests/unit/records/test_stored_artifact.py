"""A stored artifact of a short pair: it keeps verifying with its references, without a run and without torch."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import GlasshouseError, RefusedError, UsageError
from engine.records.artifact import Artifact, dump_artifact, parse_artifact
from engine.records.formats import FORMATS, render
from engine.records.public import is_public
from engine.records.reference import read_reference
from engine.records.trust import Anchors, anchors
from engine.records.verify import verify_bytes

STORED = Path(__file__).parents[2] / "vectors" / "artifact"
TEXT = (STORED / "row.json").read_bytes()


@pytest.fixture
def known(tmp_path: Path) -> Anchors:
    """A verifier who trusts the operator and has the reference values of the version that created the row."""
    return anchors(tmp_path / "none", trust=[str(STORED / "operator.txt")], references=[STORED / "reference.json"])


def test_a_stored_artifact_still_verifies(known: Anchors) -> None:
    verification = verify_bytes(TEXT, known)
    assert [(proof.name, proof.code) for proof in verification.proofs if proof.status != "passed"] == []
    assert (verification.genuine, verification.complete, verification.clean) == (True, True, True)
    assert {check["status"] for check in verification.checks} == {"passed"}


def test_an_artifact_is_rendered_as_it_was_parsed() -> None:
    artifact = parse_artifact(TEXT)
    assert render(artifact, "json") == TEXT
    assert list(dump_artifact(artifact))[:4] == ["format", "id", "label", "provider"]


def test_csv_and_markdown_contain_the_artifacts_digest() -> None:
    artifact = parse_artifact(TEXT)
    (line,) = csv.DictReader(io.StringIO(render(artifact, "csv").decode()))
    assert line["overheadPct"] == f"{artifact.row['overheadPct']}"
    assert line["activeRunPodPodsAfterRun"] == "0"
    assert line["targetSec"] == ""
    page = render(artifact, "md").decode()
    assert line["artifactSha256"] in page
    assert "Software tier" in page
    assert "faster" not in page


@pytest.mark.parametrize("label", ["=HYPERLINK(1)", "+1", "-1", "@x", "a|b *c* <b>"])
def test_a_label_is_escaped_in_every_format(label: str) -> None:
    artifact = parse_artifact(TEXT)
    named = Artifact(row=artifact.row | {"label": label}, bundle=artifact.bundle)
    for form in FORMATS:
        assert render(named, form)
    (line,) = csv.DictReader(io.StringIO(render(named, "csv").decode()))
    assert line["label"][0] not in "=+-@"
    assert "<b>" not in render(named, "md").decode()
    assert "| a|b" not in render(named, "md").decode()


@pytest.mark.parametrize(
    "change",
    [
        {"attesterKey": "no key"},
        {"cpu": "see /home/alice"},
        {"cpu": "at 10.0.0.7"},
        {"more": 1},
        {"pid": "7"},
        {"gpu": {"uuid": "GPU-1", "name": "x", "driver": "1", "address": "x"}},
    ],
)
def test_only_valid_fields_of_an_event_are_public(change: dict[str, Any]) -> None:
    body = json.loads(TEXT)["bundle"]["logs"]["pod"][0]["body"]
    assert is_public("pod", "launch.accepted", body)
    assert not is_public("pod", "launch.accepted", body | change)
    assert not is_public("runner", "launch.accepted", body)
    assert not is_public("pod", "launch.accepted", {name: body[name] for name in list(body)[1:]})


@pytest.mark.parametrize(
    "text",
    [b"", b"x", b"{}", b'{"version": 2, "bundles": []}', b'{"version": 1, "bundles": ["x"]}'],
)
def test_an_invalid_reference_file_is_refused(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "reference.json"
    file.write_bytes(text)
    with pytest.raises(UsageError) as caught:
        read_reference(file)
    assert caught.value.code == "reference_invalid"


def test_an_artifact_beyond_the_limit_is_not_parsed(monkeypatch: pytest.MonkeyPatch, known: Anchors) -> None:
    monkeypatch.setattr("engine.records.artifact.MAX_ARTIFACT_BYTES", len(TEXT) - 1)
    with pytest.raises(RefusedError) as caught:
        verify_bytes(TEXT, known)
    assert caught.value.code == "artifact_malformed"


def test_steps_beyond_the_series_are_refused(known: Anchors) -> None:
    document = json.loads(TEXT)
    progress = [entry for entry in document["bundle"]["logs"]["pod"] if entry["event"] == "train.progress"]
    progress[0]["body"]["to"] = 10**9
    try:
        verification = verify_bytes(json.dumps(document).encode(), known)
    except GlasshouseError as error:
        assert error.code == "artifact_malformed"
    else:
        assert not verification.genuine


def test_an_artifact_that_verify_would_not_read_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = parse_artifact(TEXT)
    for limit, value in (("engine.records.formats.MAX_ARTIFACT_BYTES", 1000), ("engine.wire.MAX_MARKS", 1000)):
        with monkeypatch.context() as patch:
            patch.setattr(limit, value)
            with pytest.raises(UsageError) as caught:
                render(artifact, "json")
        assert caught.value.code == "export_too_large"
        assert "--summary" in caught.value.hint


def test_an_artifact_that_is_too_large_with_its_line_breaks_is_exported_without(
    monkeypatch: pytest.MonkeyPatch, known: Anchors
) -> None:
    artifact = parse_artifact(TEXT)
    monkeypatch.setattr("engine.records.formats.MAX_ARTIFACT_BYTES", len(render(artifact, "json")) - 1)
    compact = render(artifact, "json")
    assert compact.count(b"\n") == 1
    assert verify_bytes(compact, known).genuine
