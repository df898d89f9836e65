"""A file beyond 2 GiB is sealed and opened in the memory that a small one takes."""

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
    """A folder for twice the large file: in memory where there is plenty of it, else on disk; gone at the end."""
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
    """What `large_file` tells; its files are removed at once."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.unit.sealing.large_file", str(folder), str(size)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(folder)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def test_a_file_beyond_2_gib_takes_no_more_memory_than_a_small_one(room: Path) -> None:
    small, large = (sealed_and_opened(room / name, size) for name, size in (("small", 64 * MIB), ("large", LARGE)))
    for told, size in ((small, 64 * MIB), (large, LARGE)):
        assert told["whole"]
        assert told["stored"] == sealed_size(size)
        for way in ("sealing", "opening"):
            assert (told[way]["done"], told[way]["total"], told[way]["ordered"]) == (size, size, True)
    for way in ("sealing", "opening"):
        assert large[way]["grown"] < small[way]["grown"] + 2 * MIB
        assert large[way]["grown"] < 16 * MIB
