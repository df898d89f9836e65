"""The accelerators' memory as a driver reports it: here a fake tool and a fake library, since there is no GPU."""

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
    """A folder with a fake `nvidia-smi` that prints given values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports("3", "4")
        tool = folder / "nvidia-smi"
        tool.write_text(TOOL)
        tool.chmod(0o700)

    def reports(self, *used: str, pids: tuple[str, ...] = ()) -> None:
        """MiB in use of each GPU, and the processes on them."""
        (self.folder / "used").write_text("".join(f"{one}\n" for one in used))
        (self.folder / "pids").write_text("".join(f"{one}\n" for one in pids))

    def fail(self) -> None:
        """Let every further call fail."""
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


def test_freed_memory_is_at_its_baseline(driver: Driver) -> None:
    before = memory_used()
    driver.reports("3", "2")
    device = device_after(before, known_gpu=True, settle=0.0)
    assert (device.present, device.at_baseline, device.compute_processes) == (True, True, 0)
    assert (device.bytes_before, device.bytes_after) == (7 << 20, 5 << 20)


def test_memory_or_a_process_that_remains_is_reported(driver: Driver) -> None:
    before = memory_used()
    driver.reports("3", "900", pids=("77",))
    device = device_after(before, known_gpu=True, settle=0.3)
    assert (device.at_baseline, device.compute_processes, device.bytes_after) == (False, 1, 903 << 20)


def test_after_a_driver_stops_answering_memory_is_unknown_and_the_device_present(driver: Driver) -> None:
    before = memory_used()
    driver.fail()
    device = device_after(before, known_gpu=False, settle=0.0)
    assert (device.present, device.at_baseline, device.compute_processes) == (True, None, None)


def test_without_a_baseline_the_comparison_is_unknown(driver: Driver) -> None:
    driver.reports("[N/A]")
    assert memory_used() is None
    driver.reports("3", "4")
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


def test_nvml_is_called_as_its_header_declares(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is missing, with which a stand-in for NVML is built: install the package gcc")
    source = tmp_path / "nvml.c"
    source.write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / gpu_memory.LIBRARY, source], check=True)
    result = subprocess.run(
        [sys.executable, "-c", "from engine.worker import gpu_memory; print(gpu_memory._by_library())"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(Path(engine.__file__).parents[1])},
        capture_output=True,
        check=True,
        text=True,
    )
    assert result.stdout.strip() == str(DeviceMemory(used=33 << 32, processes=3))
