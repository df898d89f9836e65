"""The published rows are present and marked, and their overheads follow from their values."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import GlasshouseError
from engine.store import published
from engine.store.published import published_rows, recomputed_overhead
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.system.resources import data_path


def test_seventeen_rows_are_in_the_store_and_marked(home: Path) -> None:
    Writer(home).close()
    with Reader(home) as reader:
        rows = reader.runs(("published",))
        assert len(rows) == 17
        assert {(row.source, row.state, row.orphaned) for row in rows} == {("published", "finished", False)}
        assert sum(row.id.startswith("pub-lora-") for row in rows) == 8
        assert sum(row.id.startswith("pub-mlp-") for row in rows) == 9
        assert reader.runs() == []


def test_opening_again_adds_no_row(home: Path) -> None:
    Writer(home).close()
    Writer(home).close()
    with Reader(home) as reader:
        assert reader.count(("published",)) == 17


def test_every_overhead_recomputes() -> None:
    for row in published_rows():
        assert recomputed_overhead(row) == row["overheadPct"], row["id"]


def test_ids_are_unique_and_stable() -> None:
    ids = [row["id"] for row in published_rows()]
    assert len(set(ids)) == 17
    assert {
        "pub-lora-05b-15m",
        "pub-lora-7b-30k-step-h100-protected-first",
        "pub-mlp-1m-rtx-a4000-raw-first",
    } <= set(ids)


def test_row_and_segments_hold_what_was_published(home: Path, reader: Reader) -> None:
    view = reader.run("pub-lora-05b-15m")
    assert view.row is not None
    assert view.row["overheadPct"] == view.summary.overhead_pct == 0.86
    assert (view.summary.raw_steps, view.summary.protected_steps) == (9143, 9065)
    raw, protected = view.segments
    assert (raw.kind, raw.steps, raw.elapsed_sec, raw.final_loss) == ("raw", 9143, 900.351, 3.965292e-05)
    assert protected.adapter_sha256 is not None
    assert protected.adapter_sha256.startswith("520660ed")


def test_protected_first_rows_list_that_segment_first(reader: Reader) -> None:
    assert [segment.kind for segment in reader.run("pub-lora-7b-30m-h100").segments] == ["protected", "raw"]


def test_rows_without_steps_have_none(reader: Reader) -> None:
    summary = reader.run("pub-mlp-1m-rtx-a4000-raw-first").summary
    assert (summary.raw_steps, summary.protected_steps, summary.overhead_pct) == (None, None, -0.41)


def test_exact_id_wins_over_longer_ones(reader: Reader) -> None:
    assert reader.resolve("pub-lora-7b-30m") == "pub-lora-7b-30m"


def test_damaged_facts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = data_path(published.FILE).read_text()
    (tmp_path / "facts.json").write_text(facts.replace('"rawSteps": 9143', '"rawSteps": 9144'))
    monkeypatch.setattr("engine.store.published.data_path", lambda _name: tmp_path / "facts.json")
    with pytest.raises(GlasshouseError) as caught:
        published_rows()
    assert caught.value.code == "install_broken"
