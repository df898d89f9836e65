"""What the command line and the console report about allocations: which are open, which need attention, their cost."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from engine.plan import PROVIDERS
from glasshouse_tui.format import money, plain

OPEN: Final = ("active", "kept", "terminating", "leaked")
"""The ledger's states in which an allocation may cost money."""
FOREIGN: Final = "foreign"
UNANSWERED: Final = "create_unanswered"


class AllocationLike(Protocol):
    """What an entry of the ledger and an entry of an overview have in common. Prices in USD, times in UTC."""

    @property
    def name(self) -> str:
        """Its name at the provider."""
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
        """None if unknown."""
        ...

    @property
    def spent(self) -> float | None:
        """So far; None if unknown."""
        ...

    @property
    def reason(self) -> str:
        """Why it is in its state."""
        ...

    @property
    def run_id(self) -> str | None:
        """The run that uses it, or used it last."""
        ...


@dataclass(frozen=True)
class Totals:
    """Sums over our open allocations. If a price is unknown, `complete` is False and the sums are lower bounds."""

    open: int
    kept: int
    leaked: int
    foreign: int
    price_per_hour: float
    spent: float
    complete: bool


def is_open(allocation: AllocationLike) -> bool:
    """True for one of ours that is not proven gone."""
    return allocation.state in OPEN


def totals(allocations: Iterable[AllocationLike]) -> Totals:
    """The sums; foreign allocations are only counted."""
    listed = tuple(allocations)
    ours = [entry for entry in listed if is_open(entry)]
    states = [entry.state for entry in listed]
    return Totals(
        open=len(ours),
        kept=states.count("kept"),
        leaked=states.count("leaked"),
        foreign=states.count(FOREIGN),
        price_per_hour=sum(entry.price_per_hour or 0.0 for entry in ours),
        spent=sum(entry.spent or 0.0 for entry in ours),
        complete=all(entry.price_per_hour is not None and entry.spent is not None for entry in ours),
    )


def is_unconfirmed(allocation: AllocationLike) -> bool:
    """True when the create call got no answer: it may exist, and listings are checked until that is certain."""
    return allocation.state == "active" and allocation.reason.startswith(UNANSWERED)


def is_unused(allocation: AllocationLike, active_runs: Collection[str | None]) -> bool:
    """True for one that is open although no active run uses it and it is not kept."""
    return allocation.state in ("active", "terminating", "leaked") and allocation.run_id not in active_runs


def price(value: float | None) -> str:
    """`$0.39 an hour`, or that it is unknown."""
    return "an unknown price" if value is None else f"{money(value)} an hour"


def by_hand(provider: str, provider_id: str | None) -> str:
    """Where a person terminates it without this program."""
    which = f" ({plain(provider_id, 60)})" if provider_id else ""
    url = PROVIDERS[provider].console_url if provider in PROVIDERS else None
    return f"by hand at {url}{which}" if url else f"by hand at {plain(provider, 20)}{which}"


def alarm(allocation: AllocationLike) -> str:
    """The warning about an allocation that may be lost; empty if there is none."""
    name = plain(allocation.name, 80)
    if allocation.state == "leaked":
        return f"LEAKED: {name} could not be proven gone and may still be billed at {price(allocation.price_per_hour)}."
    if is_unconfirmed(allocation):
        return f"UNANSWERED: the request to create {name} got no answer; it may exist and cost money."
    return ""
