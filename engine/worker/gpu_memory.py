"""The accelerators' memory as the driver reports it: bytes in use and compute processes, by NVML or `nvidia-smi`.

NVML is loaded by ctypes, so that nothing needs to be installed. What the driver does not report is unknown, never zero.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from engine.attestation.zeroization import Device
from engine.worker.isolation.hardening import device_files

LIBRARY: Final = "libnvidia-ml.so.1"
SETTLE_SECONDS: Final = 5.0  # the driver frees a dead process's memory a moment later
POLL_SECONDS: Final = 0.2
_TOOL_SECONDS: Final = 30
_MIB: Final = 1024 * 1024
_OK: Final = 0
_TOO_SMALL: Final = 7


class DeviceMemory(msgspec.Struct, frozen=True):
    """All accelerators together: bytes in use, and how many compute processes the driver lists."""

    used: int
    processes: int


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _NotReported(Exception):
    """The driver does not report this value."""


def memory_used() -> DeviceMemory | None:
    """The memory in use now; None without a driver, or where it does not report it."""
    if not device_files() and shutil.which("nvidia-smi") is None:
        return None
    try:
        return _by_library()
    except (OSError, AttributeError, _NotReported):
        return _by_tool()


def total_memory() -> int | None:
    """The size of the first accelerator's memory in bytes, as `nvidia-smi` reports it; None if it does not."""
    lines = _query_tool("--query-gpu=memory.total")
    return int(lines[0]) * _MIB if lines and lines[0].isdecimal() else None


def device_after(before: DeviceMemory | None, *, known_gpu: bool, settle: float = SETTLE_SECONDS) -> Device:
    """The accelerators once every process has ended, against the baseline taken before the first was started.

    `settle`: seconds that the driver is given to free their memory. A driver that stopped answering does not prove that
    there is no device: it counts as present, and everything else as unknown.
    """
    after = memory_used()
    until = time.monotonic() + settle
    while before is not None and after is not None and time.monotonic() < until:
        if after.used <= before.used and not after.processes:
            break
        time.sleep(POLL_SECONDS)
        after = memory_used()
    present = known_gpu or before is not None or after is not None or bool(device_files())
    known = before is not None and after is not None
    return Device(
        present=present,
        at_baseline=after.used <= before.used if before is not None and after is not None else None,
        compute_processes=after.processes if after is not None else None,
        bytes_before=before.used if before is not None and known else None,
        bytes_after=after.used if after is not None and known else None,
    )


def _by_library() -> DeviceMemory:
    nvml = ctypes.CDLL(LIBRARY)
    _require_ok(nvml.nvmlInit_v2())
    try:
        used = processes = 0
        for handle in _handles(nvml):
            memory = _Memory()
            _require_ok(nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)))
            count = ctypes.c_uint(0)
            # With an empty buffer, success means no process; "too small" sets `count` to the number of processes.
            answer = int(nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), None))
            if answer not in (_OK, _TOO_SMALL):
                raise _NotReported
            used += int(memory.used)
            processes += int(count.value)
        return DeviceMemory(used, processes)
    finally:
        nvml.nvmlShutdown()


def _handles(nvml: Any) -> Iterator[ctypes.c_void_p]:
    count = ctypes.c_uint(0)
    _require_ok(nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
    for index in range(count.value):
        handle = ctypes.c_void_p()
        _require_ok(nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)))
        yield handle


def _require_ok(answer: int) -> None:
    if answer != _OK:
        raise _NotReported


def _by_tool() -> DeviceMemory | None:
    memory = _query_tool("--query-gpu=memory.used")
    processes = _query_tool("--query-compute-apps=pid")
    if memory is None or processes is None:
        return None
    try:
        return DeviceMemory(sum(map(int, memory)) * _MIB, len(processes))
    except ValueError:
        return None


def _query_tool(query: str) -> list[str] | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        result = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_TOOL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.split() if result.returncode == 0 else None
