"""Deadlines that hold when the clock is set or the machine sleeps: by the boot clock, or by UTC after a reboot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Self

import msgspec

from engine.system.clock import boot_id, boot_seconds
from engine.wire import utc_text


class Deadline(msgspec.Struct, frozen=True, kw_only=True):
    """A moment: `utc` for display and after a reboot, `at` in seconds of the boot clock, which includes sleep."""

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
        """A moment that a provider gives in UTC."""
        return cls.after((datetime.fromisoformat(utc) - datetime.now(UTC)).total_seconds())

    def left(self) -> float:
        """Seconds until the moment; negative once it has passed."""
        if self.boot and self.boot == boot_id():
            return self.at - boot_seconds()
        return (datetime.fromisoformat(self.utc) - datetime.now(UTC)).total_seconds()
