"""The table of numbered faults is complete, and the tests in it exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.vectors.matrix import has_test

PAGE = Path(__file__).parents[2] / "functional" / "providers" / "README.md"


def test_every_fault_is_in_the_table_with_tests_that_exist() -> None:
    rows = dict(re.findall(r"^\| (\d+) \|.*?\| (`.*`) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert list(map(int, rows)) == list(range(1, 38))
    named = [test for tests in rows.values() for test in re.findall(r"`([^`]+)`", tests)]
    assert [test for test in named if not has_test(test)] == []
