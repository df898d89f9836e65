"""What command line and console say of allocations: which are open, which need somebody, what they cost."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from engine.plan import PROVIDERS
from glasshouse_tui.format import money, plain

OPEN: Final = ("active", "kept", "terminating", "leaked")
"""States of the ledger in which an allocation may cost money."""
FOREIGN: Final = "foreign"
UNANSWERED: Final = "create_unanswered"


class Rented(Protocol):
    """What an entry of the ledger and one of an overview have in common. Prices in USD, times in UTC."""

    @property
    def name(self) -> str:
        """The name that the provider knows."""
        ...

    @property
    def provider(self) -> str:
        """The provider's name."""
        ...

    @property
    def state(self) -> str:
        """A `CleanupState`, or `foreign`."""
        ...

    @property
    def price_per_hour(self) -> float | None:
        """None is unknown."""
        ...

    @property
    def spent(self) -> float | None:
        """So far; None is unknown."""
        ...

    @property
    def reason(self) -> str:
        """Why it is in its state."""
        ...

    @property
    def run_id(self) -> str | None:
        """The run that has it, or had it last."""
        ...


@dataclass(frozen=True)
class Totals:
    """Sums over what is ours and open. `complete` is False where a price is unknown: the sums are then the least."""

    open: int
    kept: int
    leaked: int
    foreign: int
    price_per_hour: float
    spent: float
    complete: bool


def is_open(one: Rented) -> bool:
    """True for what is ours and not proven gone."""
    return one.state in OPEN


def totals(allocations: Iterable[Rented]) -> Totals:
    """The sums; what is foreign is only counted."""
    listed = tuple(allocations)
    ours = [one for one in listed if is_open(one)]
    states = [one.state for one in listed]
    return Totals(
        open=len(ours),
        kept=states.count("kept"),
        leaked=states.count("leaked"),
        foreign=states.count(FOREIGN),
        price_per_hour=sum(one.price_per_hour or 0.0 for one in ours),
        spent=sum(one.spent or 0.0 for one in ours),
        complete=all(one.price_per_hour is not None and one.spent is not None for one in ours),
    )


def is_parked(one: Rented) -> bool:
    """True when the answer to its creation was lost: it may exist, and is looked for until that is certain."""
    return one.state == "active" and one.reason.startswith(UNANSWERED)


def is_left_alone(one: Rented, living_runs: Collection[str | None]) -> bool:
    """True for what is open although no living run has it and nobody asked to keep it."""
    return one.state in ("active", "terminating", "leaked") and one.run_id not in living_runs


def price(value: float | None) -> str:
    """`$0.39 an hour`, or that it is unknown."""
    return "an unknown price" if value is None else f"{money(value)} an hour"


def by_hand(provider: str, provider_id: str | None) -> str:
    """Where a person ends it without this program."""
    which = f" ({plain(provider_id, 60)})" if provider_id else ""
    place = PROVIDERS[provider].console_url if provider in PROVIDERS else None
    return f"by hand at {place}{which}" if place else f"by hand at {plain(provider, 20)}{which}"


def alarm(one: Rented) -> str:
    """The sentence about an allocation that may be lost; empty where all is well."""
    name = plain(one.name, 80)
    if one.state == "leaked":
        return f"LEAKED: {name} could not be proven gone and may go on costing {price(one.price_per_hour)}."
    if is_parked(one):
        return f"UNANSWERED: {name} was asked for and the answer was lost; it may exist and cost money."
    return ""
