"""Moments that must come although clocks are set and machines sleep: by the boot clock, by UTC after a reboot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Self

import msgspec

from engine.system.clock import boot_id, boot_seconds
from engine.wire import utc_text


class Deadline(msgspec.Struct, frozen=True, kw_only=True):
    """A moment: `utc` for people and for after a reboot, `at` in seconds of the boot clock, which counts sleep too."""

    utc: str
    boot: str = ""
    at: float = 0.0

    @classmethod
    def after(cls, seconds: float) -> Self:
        """The moment `seconds` from now."""
        utc = datetime.now(UTC) + timedelta(seconds=seconds)
        return cls(utc=utc_text(utc), boot=boot_id(), at=boot_seconds() + seconds)

    @classmethod
    def of(cls, utc: str) -> Self:
        """The moment that a provider names in UTC."""
        return cls.after((datetime.fromisoformat(utc) - datetime.now(UTC)).total_seconds())

    def left(self) -> float:
        """Seconds until it comes; negative once it has."""
        if self.boot and self.boot == boot_id():
            return self.at - boot_seconds()
        return (datetime.fromisoformat(self.utc) - datetime.now(UTC)).total_seconds()
