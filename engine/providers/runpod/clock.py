"""The clock of every limit and listing: seconds since boot, sleep included, untouched by steps of the wall clock."""

from __future__ import annotations

import time
from typing import Final

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_seconds() -> float:
    """Seconds since this machine booted; they go on while it sleeps."""
    return time.clock_gettime(_CLOCK)
