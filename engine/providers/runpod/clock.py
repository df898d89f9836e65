"""The clock of every limit and listing: seconds since boot, sleep included, untouched by steps of the wall clock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_seconds() -> float:
    """Seconds since this machine booted; they go on while it sleeps."""
    return time.clock_gettime(_CLOCK)


def boot_id() -> str:
    """Which boot `boot_seconds` counts from; empty where the system does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
