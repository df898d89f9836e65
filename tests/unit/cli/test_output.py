"""What commands write to the streams."""

from __future__ import annotations

import json
import math
import time

import pytest

from glasshouse_tui.commands import output


def test_json_is_one_document_in_utf8_without_nan(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    output.emit_json({"loss": math.nan, "label": "Glashütte", "steps": [1, 2]})
    written = capfdbinary.readouterr()
    assert json.loads(written.out) == {"loss": None, "label": "Glashütte", "steps": [1, 2]}
    assert "Glashütte".encode() in written.out
    assert written.err == b""


def test_control_characters_never_reach_the_terminal() -> None:
    assert output.plain("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\nc\\u202e"


def test_missing_values_are_unknown_and_zero_is_not() -> None:
    assert output.known(None) == "unknown"
    assert output.known(math.nan) == "unknown"
    assert output.known(0) == "0"
    assert output.known(0.0, " USD") == "0 USD"
    assert output.known(value=False) == "no"
    assert output.rate(0, None) == "unknown"
    assert output.rate(100, 0.0) == "unknown"
    assert output.loss(math.inf) == "unknown"


def test_durations_are_shown_to_a_tenth_or_a_millisecond() -> None:
    assert output.seconds(15.2034) == "15.203 s"
    assert output.seconds(900.351) == "900.4 s"
    assert output.seconds(None) == "unknown"


def test_tables_align_without_trailing_spaces() -> None:
    text = output.table(("id", "n"), [("a", "1"), ("bcd", "22")], right=frozenset({1}))
    assert text.splitlines() == ["id    n", "a     1", "bcd  22"]


def test_times_are_local_and_show_their_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert output.local_time("2026-05-17T10:00:00.000Z") == "2026-05-17 12:00:00 CEST"
        assert output.local_time(None) == "unknown"
    finally:
        monkeypatch.undo()
        time.tzset()
