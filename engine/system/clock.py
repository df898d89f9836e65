"""The boot clock: it goes on during sleep, and changes of the wall clock do not affect it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_seconds() -> float:
    """Seconds since this machine booted, including time asleep."""
    return time.clock_gettime(_CLOCK)


def boot_micros() -> int:
    """As `boot_seconds`, in whole microseconds."""
    return time.clock_gettime_ns(_CLOCK) // 1000


def boot_id() -> str:
    """The kernel's random id of this boot; empty if there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
