"""The wall clock is read in one place, and decides nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from engine.system.clock import BootTime

ROOT = Path(__file__).parents[3]
READS = {
    ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"), ("time", "time"),
    ("time", "time_ns"), ("time", "localtime"), ("time", "gmtime"), ("time", "ctime"), ("time", "strftime"),
}  # fmt: skip
ALLOWED = {
    "engine/system/clock.py": "the one place",
    "engine/remote/programs/lock_holder.py": "sent to hosts as text; the time is only shown to a person",
}


def _reads(path: Path) -> list[int]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in READS
    ]


def test_the_wall_clock_is_read_in_one_place_only() -> None:
    files = [path for room in ("engine", "glasshouse_tui") for path in sorted((ROOT / room).rglob("*.py"))]
    readers = {str(path.relative_to(ROOT)) for path in files if _reads(path)}
    assert readers == set(ALLOWED)


@pytest.mark.parametrize(
    ("earlier", "later", "seconds"),
    [
        (BootTime("a", 10.0), BootTime("a", 25.5), 15.5),
        (BootTime("a", 10.0), BootTime("b", 25.5), None),
        (BootTime("", 10.0), BootTime("", 25.5), None),
        (BootTime("a", 10.0), BootTime("a", 9.0), None),
    ],
)
def test_only_moments_of_one_boot_can_be_compared(earlier: BootTime, later: BootTime, seconds: float | None) -> None:
    assert earlier.until(later) == seconds
    assert BootTime.read(str(earlier)) == earlier


@pytest.mark.parametrize("text", [None, "", "boot", "boot x", 7])
def test_what_is_no_moment_is_unknown(text: object) -> None:
    assert BootTime.read(text) is None
