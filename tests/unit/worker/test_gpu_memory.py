"""The accelerator's memory as a driver tells it: here a tool and a library of the test's own, since there is no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import engine
from engine.worker import gpu_memory
from engine.worker.gpu_memory import DeviceMemory, device_after, memory_used
from engine.worker.isolation.hardening import device_files

TOOL = """#!/bin/sh
[ -e "$(dirname "$0")/silent" ] && exit 9
case "$1" in
  --query-gpu=*) cat "$(dirname "$0")/used" ;;
  *) cat "$(dirname "$0")/pids" ;;
esac
"""


class Driver:
    """A folder with an `nvidia-smi` that says what it is told to say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.says("3", "4")
        tool = folder / "nvidia-smi"
        tool.write_text(TOOL)
        tool.chmod(0o700)

    def says(self, *used: str, pids: tuple[str, ...] = ()) -> None:
        """MiB in use of each GPU, and the processes on them."""
        (self.folder / "used").write_text("".join(f"{one}\n" for one in used))
        (self.folder / "pids").write_text("".join(f"{one}\n" for one in pids))

    def falls_silent(self) -> None:
        """From now on it fails."""
        (self.folder / "silent").touch()


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    if device_files():
        pytest.skip("this machine has a real NVIDIA driver, which would answer: run on a machine without one")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Driver(tmp_path)


def test_without_a_driver_nothing_is_present() -> None:
    if device_files() or shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA driver: run on a machine without one")
    assert memory_used() is None
    assert device_after(None, known_gpu=False).present is False


@pytest.mark.usefixtures("driver")
def test_all_accelerators_are_added_up() -> None:
    assert memory_used() == DeviceMemory(used=7 << 20, processes=0)


def test_memory_that_came_back_is_at_its_baseline(driver: Driver) -> None:
    before = memory_used()
    driver.says("3", "2")
    found = device_after(before, known_gpu=True, settle=0.0)
    assert (found.present, found.at_baseline, found.compute_processes) == (True, True, 0)
    assert (found.bytes_before, found.bytes_after) == (7 << 20, 5 << 20)


def test_memory_or_a_process_that_stays_is_told(driver: Driver) -> None:
    before = memory_used()
    driver.says("3", "900", pids=("77",))
    found = device_after(before, known_gpu=True, settle=0.3)
    assert (found.at_baseline, found.compute_processes, found.bytes_after) == (False, 1, 903 << 20)


def test_a_driver_that_falls_silent_is_unknown_and_not_absent(driver: Driver) -> None:
    before = memory_used()
    driver.falls_silent()
    found = device_after(before, known_gpu=False, settle=0.0)
    assert (found.present, found.at_baseline, found.compute_processes) == (True, None, None)


def test_without_a_baseline_nothing_is_at_it(driver: Driver) -> None:
    driver.says("[N/A]")
    assert memory_used() is None
    driver.says("3", "4")
    assert device_after(None, known_gpu=True, settle=0.0).at_baseline is None


LIBRARY = r"""
#include <stdint.h>
#include <stdlib.h>
struct memory { unsigned long long total, free, used; };
static unsigned devices[2] = {11, 22};
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
  *handle = &devices[index]; return index > 1 ? 2 : 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
  memory->total = 80ULL << 30; memory->used = (unsigned long long)*(unsigned *)handle << 32;
  memory->free = memory->total - memory->used; return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, void *infos) {
  if (*count || infos) return 2;
  if (*(unsigned *)handle == 11) return 0;
  *count = 3; return 7;
}
"""


def test_the_library_is_spoken_to_as_its_header_says(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is missing, with which a stand-in for NVML is built: install the package gcc")
    source = tmp_path / "nvml.c"
    source.write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / gpu_memory.LIBRARY, source], check=True)
    told = subprocess.run(
        [sys.executable, "-c", "from engine.worker import gpu_memory; print(gpu_memory._by_library())"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(Path(engine.__file__).parents[1])},
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    assert told.stdout.strip() == str(DeviceMemory(used=33 << 32, processes=3))
