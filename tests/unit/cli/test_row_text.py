"""A row as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.records.row import live_row
from engine.store.reader import Reader
from engine.store.views import Check
from glasshouse_tui.commands.row_text import overhead_text, row_text

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Scene


@pytest.mark.parametrize(
    ("pct", "interval", "expected"),
    [
        (None, None, "unknown"),
        (0.86, None, "0.86 % (no interval from a single pair)"),
        (-0.73, None, "-0.73 % (within noise: no interval from a single pair)"),
        (0.9, [0.2, 1.6], "0.90 % (95 % interval 0.20 to 1.60 %)"),
        (-0.4, [-1.2, 0.4], "-0.40 % (within noise: 95 % interval -1.20 to 0.40 %)"),
        (-2.0, [-3.0, -1.0], "-2.00 % (control failed: 95 % interval -3.00 to -1.00 %)"),
    ],
)
def test_an_overhead_is_shown_with_its_uncertainty(
    pct: float | None, interval: list[float] | None, expected: str
) -> None:
    assert overhead_text(pct, interval) == expected


def test_unpublished_fields_of_a_published_row_are_unknown(scene: Scene) -> None:
    view = scene.reader.run(scene.reader.resolve("pub-lora-7b-30k"))
    assert view.row is not None
    text = row_text(view, view.row)
    assert "-0.73 % (within noise: no interval from a single pair)" in text
    assert "faster" not in text
    assert "noise floor  unknown" in text
    assert "30000" in text
    assert "published    2026-05-21" in text


def test_every_published_row_can_be_shown(scene: Scene) -> None:
    runs = scene.reader.runs(source=("published",))
    assert len(runs) == 17
    for run in runs:
        view = scene.reader.run(run.id)
        assert view.row is not None
        assert f"{view.row['overheadPct']:.2f} %" in row_text(view, view.row)


def test_both_verdicts_show_every_check_with_its_reason(scene: Scene) -> None:
    scene.create()
    checks = [
        Check(name="attestation_verified", group="lifecycle", status="passed", reason="tier software"),
        Check(name="allocation_gone", group="lifecycle", status="pending", reason="kept"),
        Check(name="same_tensors", group="model_artifact", status="failed", reason="they \x1b[1mpart"),
        Check(name="planned_stop", group="model_artifact", status="not_applicable", reason="none"),
    ]
    scene.finish(clean=False, checks=checks, rawSteps=10, protectedSteps=10, rawElapsedSec=1.0)
    view = Reader(scene.home).run(scene.run_id)
    assert view.row is not None
    text = row_text(view, view.row)
    assert "finished, NOT CLEAN" in text
    assert "lifecycle: 1 passed, 1 pending" in text
    assert "model artifact: 1 failed, 1 not applicable" in text
    assert "FAILED  same_tensors  they \\x1b[1mpart" in text
    assert "ok      attestation_verified  tier software" in text


def test_an_unfinished_run_is_provisional_and_has_no_verdict(scene: Scene) -> None:
    scene.create()
    scene.move("run", "running")
    scene.move("segment:raw", "training")
    scene.train("raw", [2.5] * 4, step_seconds=0.010)
    scene.train("protected", [2.5] * 4, step_seconds=0.011)
    view = scene.view()
    text = row_text(view, live_row(view))
    assert "running, no verdict yet" in text
    assert "provisional; no interval from a single pair" in text
    assert "100.0 steps/s" in text


def test_the_text_fits_eighty_columns_except_long_reasons(scene: Scene) -> None:
    scene.create()
    scene.finish(clean=True, rawSteps=1800, protectedSteps=1800, rawElapsedSec=15.2, planDigest="a" * 64)
    view = scene.view()
    assert view.row is not None
    assert max(len(line) for line in row_text(view, view.row).splitlines()) <= 80
