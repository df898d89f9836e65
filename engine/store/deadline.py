"""Deadlines by the boot clock. After a restart of this machine only the provider's own times can tell what is left."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Self

import msgspec

from engine.system.clock import BootTime, utc
from engine.wire import utc_text


class Deadline(msgspec.Struct, frozen=True, kw_only=True):
    """A moment: `utc` for display only, `at` in seconds of the boot clock, which includes sleep, in the boot `boot`.

    `life`: the same moment in seconds after the provider created the allocation, None if that is unknown.
    """

    utc: str
    boot: str = ""
    at: float = 0.0
    life: float | None = None

    @classmethod
    def after(cls, seconds: float, life: float | None = None) -> Self:
        """The moment `seconds` from now."""
        now = BootTime.now()
        display = utc_text(utc() + timedelta(seconds=seconds))
        return cls(utc=display, boot=now.boot, at=now.at + seconds, life=life)

    def left(self) -> float | None:
        """Seconds until the moment, negative once it has passed; None when this machine was restarted since."""
        now = BootTime.now()
        return self.at - now.at if self.boot and self.boot == now.boot else None

    def is_over(self) -> bool:
        """True once the moment is known to have passed."""
        left = self.left()
        return left is not None and left <= 0

    def by_age(self, age: float) -> Self | None:
        """The same moment by the age of the allocation in seconds, as its provider states it; None without `life`."""
        return None if self.life is None else type(self).after(self.life - age, self.life)


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """The age of an allocation in seconds as its provider stated it at a moment of the boot clock: a claim."""

    boot: str
    at: float
    age: float

    @classmethod
    def now(cls, age: float) -> Self:
        """The claim that was just made."""
        moment = BootTime.now()
        return cls(boot=moment.boot, at=moment.at, age=age)

    def age_at(self, moment: BootTime) -> float | None:
        """The age at a moment of the same boot, None in another one."""
        if not self.boot or self.boot != moment.boot:
            return None
        return max(0.0, self.age + moment.at - self.at)


FIRST_LOOK: Final = 15.0
CONFIRMED_SECONDS: Final = 3600.0
UNCONFIRMED_SECONDS: Final = 24 * 3600.0


class Recheck(msgspec.Struct, frozen=True, kw_only=True):
    """An allocation that is gone and looked for again, since a provider may list it, and bill it, later.

    `confirmed`: the provider answered a termination with a success. `looked`: seconds from the end, by the boot
    clock, to the last look. The next one is due at twice that; the last one after an hour, or a day if unconfirmed.
    """

    boot: str
    at: float
    confirmed: bool
    looked: float = 0.0
    over: bool = False

    @classmethod
    def begin(cls, *, confirmed: bool) -> Self:
        """It is gone as of now."""
        now = BootTime.now()
        return cls(boot=now.boot, at=now.at, confirmed=confirmed)

    def due(self, first: float = FIRST_LOOK) -> bool:
        """Whether to look now; at once when this machine was restarted since. `first`: seconds to the first look."""
        if self.over:
            return False
        passed = BootTime(self.boot, self.at).until(BootTime.now())
        return passed is None or passed >= max(first, 2 * self.looked)

    def after_look(self) -> Self:
        """The record after a look that did not find it; after a restart of this machine the looks begin anew."""
        passed = BootTime(self.boot, self.at).until(BootTime.now())
        if passed is None:
            return type(self).begin(confirmed=self.confirmed)
        last = CONFIRMED_SECONDS if self.confirmed else UNCONFIRMED_SECONDS
        return msgspec.structs.replace(self, looked=passed, over=passed >= last)
