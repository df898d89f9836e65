"""A file of more than 2 GiB is sealed and opened in as little memory as a small one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.sealing.cobblestone import sealed_size

MIB, GIB = 1024 * 1024, 1024**3
LARGE = 2 * GIB + 77


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder with space for the large file twice: in memory if there is enough, else on disk; removed at the end."""
    shared = Path("/dev/shm")  # noqa: S108  a folder of our own inside it
    free = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    spare = int(free[1]) * 1024 if free else 0
    base = tmp_path
    if shared.is_dir() and shutil.disk_usage(shared).free > 5 * GIB and spare > 8 * GIB:
        base = shared
    if shutil.disk_usage(base).free < 5 * GIB:
        pytest.skip("a file of 2 GiB is sealed and opened here: free 5 GiB in the temporary folder (TMPDIR)")
    with tempfile.TemporaryDirectory(dir=base, prefix="glasshouse-test-") as folder:
        yield Path(folder)


def sealed_and_opened(folder: Path, size: int) -> dict[str, Any]:
    """The report of `large_file`; its files are removed at once."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.unit.sealing.large_file", str(folder), str(size)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(folder)
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def test_a_file_beyond_2_gib_takes_no_more_memory_than_a_small_one(room: Path) -> None:
    small, large = (sealed_and_opened(room / name, size) for name, size in (("small", 64 * MIB), ("large", LARGE)))
    for report, size in ((small, 64 * MIB), (large, LARGE)):
        assert report["whole"]
        assert report["stored"] == sealed_size(size)
        for way in ("sealing", "opening"):
            assert (report[way]["done"], report[way]["total"], report[way]["ordered"]) == (size, size, True)
    for way in ("sealing", "opening"):
        assert large[way]["grown"] < small[way]["grown"] + 2 * MIB
        assert large[way]["grown"] < 16 * MIB
