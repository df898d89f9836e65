"""Free memory by the kernel's files, under a folder of our own."""

from __future__ import annotations

from pathlib import Path

from engine.system.memory import available_memory

GIB = 1024**3


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_the_containers_limit_counts_where_it_is_lower(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    put(tmp_path, "proc/meminfo", f"MemTotal: 1 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    assert available_memory(tmp_path) == 8 * GIB
    put(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    put(tmp_path, "sys/fs/cgroup/memory.current", f"{GIB}\n")
    assert available_memory(tmp_path) == 8 * GIB
    put(tmp_path, "sys/fs/cgroup/memory.max", f"{3 * GIB}\n")
    assert available_memory(tmp_path) == 2 * GIB


def test_this_machine_has_some() -> None:
    assert (available_memory() or 0) > 0
