"""Both clocks, and the only place that reads them.

The boot clock decides: costs, ages, deadlines and rates. It goes on during sleep, and changes of the wall clock do not
affect it. The wall clock (UTC) is for display, and for the validity of signed documents that strangers check.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def utc() -> datetime:
    """The wall clock, in UTC. Nothing may be decided by it alone: it can be set to any time, at any time."""
    return datetime.now(UTC)


def unix_seconds() -> float:
    """The wall clock in seconds since 1970, for the times in signed tokens, which are checked with leeway."""
    return utc().timestamp()


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


@dataclass(frozen=True, slots=True)
class BootTime:
    """A moment on the boot clock, in seconds; only moments of one boot can be compared."""

    boot: str
    at: float

    @classmethod
    def now(cls) -> Self:
        """This moment."""
        return cls(boot_id(), boot_seconds())

    @classmethod
    def read(cls, text: object) -> Self | None:
        """A stored moment; None if `text` is not one."""
        if not isinstance(text, str):
            return None
        boot, _, seconds = text.partition(" ")
        try:
            return cls(boot, float(seconds))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.boot} {self.at:.3f}"

    def until(self, later: BootTime) -> float | None:
        """Seconds from this moment to a later one; None across a restart of the machine, or where boots have no id."""
        if not self.boot or self.boot != later.boot or later.at < self.at:
            return None
        return later.at - self.at
