"""How the console formats numbers, times and hostile text."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from glasshouse_tui import format as fmt


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, fmt.DASH), (0.04, "0.04"), (9.876, "9.88"), (78.25, "78.2"), (1618.4, "1,618"), (float("nan"), fmt.DASH)],
)
def test_a_rate_has_three_digits_and_an_unknown_one_is_a_dash(value: float | None, shown: str) -> None:
    assert fmt.rate(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, fmt.DASH), (2.31, "2.3100"), (3.405979e-08, "3.406e-08"), (0.0, "0.0000"), (float("inf"), "not finite")],
)
def test_a_small_loss_is_scientific_and_an_infinite_one_is_not_finite(value: float | None, shown: str) -> None:
    assert fmt.loss(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, fmt.DASH),
        (4.2, "4.2 s"),
        (9.96, "10 s"),
        (59.6, "1m 00s"),
        (723, "12m 03s"),
        (3599.7, "1h 00m"),
        (11_040, "3h 04m"),
        (183_600, "2d 03h"),
        (-3, "0.0 s"),
    ],
)
def test_a_duration_uses_two_units_and_never_sixty_of_one(seconds: float | None, shown: str) -> None:
    assert fmt.duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, fmt.DASH), (0.857, "+0.86 %"), (-0.454, "\u22120.45 %"), (-0.001, "0.00 %"), (18.05, "+18.05 %")],
)
def test_an_overhead_has_a_sign(value: float | None, shown: str) -> None:
    assert fmt.percent(value) == shown


def test_a_fraction_is_100_percent_only_when_complete() -> None:
    assert [fmt.whole_percent(part) for part in (None, 0.0, 0.999, 1.0)] == [fmt.DASH, "0 %", "99 %", "100 %"]


def test_times_are_shown_in_the_local_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert fmt.clock("2026-05-17T20:03:22.000Z") == "05:03:22"
        assert fmt.moment("2026-05-17T20:03:22.000Z") == "2026-05-18 05:03"
        assert fmt.zone(datetime(2026, 5, 17, tzinfo=UTC)) == "JST"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_missing_or_invalid_time_is_a_dash() -> None:
    assert fmt.clock(None) == fmt.clock("yesterday") == fmt.DASH
    assert fmt.seconds_between(None, "2026-05-17T20:03:22.000Z") is None


def test_text_from_a_pod_cannot_control_the_terminal() -> None:
    assert fmt.plain("ok\x1b[2J\r\nmore\u202e") == "ok·[2J··more·"
    assert fmt.plain("x" * 500, 10) == "x" * 10 + "…"


def test_an_event_is_summarized_by_its_short_fields() -> None:
    body = {
        "at": 25.4,
        "state": "warming",
        "segment": "raw",
        "losses": "A" * 900,
        "sha256": "ab" * 32,
        "ok": True,
        "x": {},
    }
    assert fmt.brief(body) == "raw · warming · at 25.4 · losses AAAAAAAAAAAA… · sha256 abababababab… · ok yes"


def test_gpu_and_model_names_are_shortened() -> None:
    assert fmt.gpu("NVIDIA GeForce RTX 4090") == "RTX 4090"
    assert fmt.gpu("NVIDIA H100 80GB HBM3") == "H100"
    assert fmt.model("Qwen/Qwen2.5-7B-Instruct") == "Qwen2.5-7B-Instruct"


def test_a_published_rows_id_is_never_cut() -> None:
    assert fmt.short_id("3f9a1c0d77b2") == "3f9a1c0d"
    assert fmt.short_id("pub-lora-05b-15m") == "pub-lora-05b-15m"


def test_controls_that_are_not_enforced_are_named() -> None:
    assert fmt.controls_text({"seccomp": "enforced", "yama": "absent"}) == "1 of 2 enforced; yama absent"
    assert fmt.controls_text({"seccomp": "enforced"}) == "1 of 1 enforced"
    assert fmt.controls_text({"mlockall": "failed:EPERM"}) == "0 of 1 enforced; mlockall failed:EPERM"
