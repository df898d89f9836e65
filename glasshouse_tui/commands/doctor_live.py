"""The live self-test on the command line: the ceiling, the confirmation, each step with its time and cost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.errors import UsageError
from glasshouse_tui.allocation_status import by_hand
from glasshouse_tui.commands.base import open_reader
from glasshouse_tui.commands.confirm import confirm
from glasshouse_tui.commands.output import as_builtins, can_ask, emit_json, emit_text, plain, say
from glasshouse_tui.commands.plan_options import gpu_names
from glasshouse_tui.format import duration, money

if TYPE_CHECKING:
    from engine.allocations.live_test import LiveTestOptions, Outcome, Step
    from engine.providers.protocol import Quote
    from glasshouse_tui.commands.base import Session


def live_test_options(
    session: Session, max_cost: float, max_price: float | None, gpu: str | None, self_destruct: float | None
) -> LiveTestOptions:
    """The self-test's options, from the command line and the settings; raises `UsageError`."""
    from engine.allocations.live_test import CHEAP, LiveTestOptions
    from engine.providers.settings import load_settings

    own = load_settings(session.home).runpod
    return LiveTestOptions(
        max_cost=max_cost,
        max_price=own.max_price if max_price is None else max_price,
        gpus=gpu_names(gpu) or own.gpus or CHEAP,
        self_destruct=self_destruct,
    )


def live_test(session: Session, provider: str, options: LiveTestOptions, *, yes: bool) -> int:
    """Quote, confirm, rent, test, terminate and prove; returns 0 if every step passed and the pod is proven gone."""
    if not yes and (session.json or not can_ask()):
        raise UsageError(
            "--live costs money, and there is no terminal to ask on.",
            "Add --yes to confirm.",
            code="confirmation_needed",
        )
    open_reader(session).data_version()
    with session.writer():
        pass  # the home and its database must exist and be intact before anything is rented
    quote, gpus = asyncio.run(_quoted(session, provider, options))
    if not session.json:
        for line in ceiling_lines(quote, options):
            say(line)
    if not yes:
        confirm("Rent it?", declined="Not rented.")
    outcome = asyncio.run(_tested(session, provider, options, gpus))
    if session.json:
        emit_json(as_builtins(outcome))
    else:
        emit_text(verdict(outcome, provider))
    return 0 if outcome.passed else 1


def ceiling_lines(quote: Quote, options: LiveTestOptions) -> list[str]:
    """The cost ceiling, and the quote for what is about to be rented."""
    return [
        f"ceiling  {money(options.max_cost)}: the pod terminates itself before it costs more",
        f"quote    {plain(quote.gpu_model)} at {money(quote.price_per_hour)} an hour",
    ]


def step_text(step: Step) -> str:
    """`ok       login   2.4 s  $0.0004  detail`."""
    mark = "ok" if step.passed else "FAILED"
    cost = "" if step.spent is None else f"  ${step.spent:.4f}"
    return f"{mark:<9}{step.name:<14}{duration(step.seconds):>7}{cost}  {plain(step.detail)}"


def verdict(outcome: Outcome, provider: str) -> str:
    """The verdict, printed last."""
    cost = "nothing" if outcome.cost is None else f"at most ${outcome.cost:.4f}"
    if outcome.passed:
        return f"Renting, trust and termination work with {provider}; the test cost {cost}."
    if outcome.gone:
        return f"The self-test failed, and its pod is gone; it cost {cost}."
    return (
        f"The self-test failed, and {plain(outcome.name)} IS NOT PROVEN GONE; it has cost {cost}.\n"
        f"`glasshouse cleanup` tries again; or terminate it {by_hand(provider, outcome.allocation_id)}."
    )


async def _quoted(session: Session, provider: str, options: LiveTestOptions) -> tuple[Quote, tuple[str, ...]]:
    from engine.allocations.live_test import cheapest
    from engine.providers import provider_for
    from engine.providers.settings import load_settings

    member = provider_for(provider, session.home, load_settings(session.home))
    try:
        return await cheapest(member, options)
    finally:
        await member.close()


async def _tested(session: Session, provider: str, options: LiveTestOptions, gpus: tuple[str, ...]) -> Outcome:
    from engine.allocations.live_test import SelfTest
    from engine.providers import provider_for
    from engine.providers.settings import load_settings

    last = ""

    def on_phase(text: str) -> None:
        nonlocal last
        phase, _, _ = text.partition(": ")  # after the colon is a count of seconds
        if phase != last:
            say(f"         {plain(text)}")
        last = phase

    def on_step(step: Step) -> None:
        say(step_text(step))

    member = provider_for(provider, session.home, load_settings(session.home))
    quiet = session.json
    try:
        test = SelfTest(
            session.home,
            member,
            options,
            gpus,
            on_step=(lambda _: None) if quiet else on_step,
            on_phase=None if quiet else on_phase,
        )
        return await test.run()
    finally:
        await member.close()
