"""What a rented run may cost: the ceiling it needs, and the price that is shown and confirmed before it starts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.errors import UsageError
from glasshouse_tui.commands.confirm import confirm
from glasshouse_tui.commands.output import can_ask, plain, say
from glasshouse_tui.format import duration, money

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.providers.protocol import Quote, Spec
    from engine.providers.settings import Settings
    from engine.runner.feasible import Feasible
    from glasshouse_tui.commands.base import Session


def check_ceiling(session: Session, plan: Plan) -> None:
    """Refuse to rent a GPU without a cost ceiling in options, preset or settings, or to use an allocation not kept.

    Raises `UsageError`: `ceiling_missing`, `config_invalid`, `allocation_unknown`.
    """
    if not rents(plan):
        if plan.provider.kind.rents and plan.provider.allocation is not None:
            from engine.runner.allocation import kept_allocation

            with session.reader() as reader:
                kept_allocation(reader, plan.provider.allocation)
        return
    from engine.providers.settings import FILE, load_settings

    if plan.provider.max_cost is None and load_settings(session.home).runpod.max_cost is None:
        raise UsageError(
            "A rented GPU needs a cost ceiling, and none is given.",
            f"Add --max-cost USD, or set max_cost under [runpod] in {session.home / FILE}.",
            code="ceiling_missing",
        )


def rents(plan: Plan) -> bool:
    """Whether the plan rents an allocation of its own."""
    return plan.provider.kind.rents and plan.provider.allocation is None


def confirm_price(session: Session, found: Feasible, *, ask: bool) -> None:
    """On a terminal, show the current price of a rented GPU and ask for confirmation; elsewhere do nothing.

    Raises `ProviderError` if there is no quote, `Declined` on no.
    """
    plan = found.plan
    if not rents(plan) or session.json or not can_ask():
        return
    from engine.providers.settings import load_settings
    from engine.runner.spec import spec_for

    settings = load_settings(session.home)
    spec = spec_for(session.home, plan, settings, "quote", found.weights_bytes)
    quote = asyncio.run(quote_of(session, plan, spec, settings))
    for line in quote_lines(quote, spec, plan.provider.keep_for):
        say(line)
    if ask:
        confirm("Rent it?", declined="Not rented.")


async def quote_of(session: Session, plan: Plan, spec: Spec, settings: Settings) -> Quote:
    """The price that the provider names now; raises its errors."""
    from engine.providers import provider_for

    provider = provider_for(plan.provider.name, session.home, settings)
    try:
        return await provider.quote(spec)
    finally:
        await provider.close()


def quote_lines(quote: Quote, spec: Spec, keep_minutes: int | None) -> list[str]:
    """The price, the maximum cost of the run, when the pod terminates itself, and the cost of keeping it."""
    from engine.runner.spec import most_it_costs

    most = most_it_costs(quote, spec)
    seconds = most / quote.price_per_hour * 3600 if quote.price_per_hour > 0 else spec.max_seconds
    lines = [
        f"{plain(quote.gpu_model)} at {money(quote.price_per_hour)} an hour",
        f"at most {money(most)}: the pod terminates itself {duration(seconds)} after its creation, or with the run",
    ]
    if keep_minutes:
        kept = quote.price_per_hour * keep_minutes / 60
        lines.append(f"kept for {keep_minutes} min after the run: up to {money(kept)} of that")
    return lines
