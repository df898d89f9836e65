"""`allocations`: what is rented, what it has cost, and what of it needs somebody."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from glasshouse_tui.allocation_status import FOREIGN, Totals, alarm, by_hand, totals
from glasshouse_tui.commands.base import AllocationSubcommand, open_reader, session_of
from glasshouse_tui.commands.output import UNKNOWN, as_builtins, emit_json, emit_text, known, plain, say, table
from glasshouse_tui.format import duration, gpu, moment, money, seconds_between, short_id

if TYPE_CHECKING:
    from engine.allocations.overview import Listed, Overview, Trouble

HEAD: Final = ("id", "provider", "GPU", "price", "age", "spent", "state", "run")
_NUMBERS: Final = frozenset({3, 4, 5})


@click.command(cls=AllocationSubcommand, short_help="List what is rented and what it has cost.")
@click.option("--all", "ended", is_flag=True, help="Also those that are gone.")
@click.option("--offline", is_flag=True, help="The ledger alone: ask no provider, so that nothing foreign is seen.")
@click.pass_context
def allocations(context: click.Context, ended: bool, offline: bool) -> int:
    """List allocations, ours and foreign: GPU, price, age, what was spent so far, state and run.

    What is not ours is shown and never touched. Exits 1 when a provider could not be asked: what it has is then
    unknown, not absent.
    """
    from engine.allocations.overview import overview

    session = session_of(context)
    open_reader(session).data_version()
    seen = overview(session.home, look=not offline, ended=ended)
    if session.json:
        emit_json(_document(seen))
    else:
        emit_text(listing_text(seen, offline=offline))
        for trouble in seen.troubles:
            say(trouble_text(trouble))
    return 1 if seen.troubles else 0


def _document(seen: Overview) -> dict[str, Any]:
    found = totals(seen.allocations)
    return {
        **as_builtins(seen),
        "totals": {
            "open": found.open,
            "kept": found.kept,
            "leaked": found.leaked,
            "foreign": found.foreign,
            "pricePerHour": round(found.price_per_hour, 6),
            "spent": round(found.spent, 6),
            "complete": found.complete,
        },
    }


def listing_text(seen: Overview, *, offline: bool) -> str:
    """The table, the totals, and every allocation that needs somebody."""
    looked = "" if not offline else " No provider was asked."
    if not seen.allocations:
        return f"Nothing is rented.{looked}" if not seen.troubles else "The ledger has nothing that is open."
    blocks = [table(HEAD, [cells(one, seen.at) for one in seen.allocations], right=_NUMBERS)]
    blocks.append(totals_text(totals(seen.allocations)) + looked)
    blocks += [text for one in seen.allocations if (text := alarm_text(one))]
    return "\n\n".join(blocks)


def cells(one: Listed, at: str) -> tuple[str, ...]:
    """One line of `HEAD`, at a time in UTC."""
    age = seconds_between(one.since, at)
    return (
        plain(one.id or one.allocation_id or UNKNOWN),
        plain(one.provider),
        gpu(one.gpu_model) if one.gpu_model else UNKNOWN,
        UNKNOWN if one.price_per_hour is None else money(one.price_per_hour, "/h"),
        UNKNOWN if age is None else duration(age),
        "-" if not one.ours and one.spent is None else UNKNOWN if one.spent is None else money(one.spent),
        _state(one),
        plain(one.name) if not one.ours else _run(one),
    )


def _state(one: Listed) -> str:
    state = plain(one.state).replace("_", " ")
    if one.state == "kept" and one.keep_until:
        state = f"kept until {moment(one.keep_until)}"
    if one.state == "leaked":
        state = "LEAKED"
    usual = one.observation in (None, "alive") or one.state in ("gone", "not_ours")
    return state if usual else f"{state}, {plain(one.observation)}"


def _run(one: Listed) -> str:
    return "-" if one.run_id is None else f"{short_id(one.run_id)} {known(one.run_state)}"


def totals_text(found: Totals) -> str:
    """`2 open at $0.78/h, $3.10 spent so far; 1 not ours`."""
    least = "" if found.complete else "at least "
    text = f"{found.open} open"
    if found.open:
        text += f" at {least}{money(found.price_per_hour, '/h')}, {least}{money(found.spent)} spent so far"
    if found.foreign:
        text += f"; {found.foreign} not ours, shown only"
    return f"{text}. Prices in USD, times in {datetime.now().astimezone().tzname() or 'local time'}."


def alarm_text(one: Listed) -> str:
    """What is wrong with an allocation and how to end it; empty where all is well."""
    if one.state == FOREIGN or not (text := alarm(one)):
        return ""
    why = f"\n  {plain(one.reason)}" if one.reason else ""
    return f"{text}{why}\n  `glasshouse cleanup {one.id}` tries again; {by_hand(one.provider, one.allocation_id)}."


def trouble_text(trouble: Trouble) -> str:
    """A provider that could not be asked, as an error's lines."""
    text = f"error: {plain(trouble.provider)} could not be asked: {plain(trouble.message)}"
    hint = f"\n  {plain(trouble.hint)}" if trouble.hint else ""
    return f"{text}{hint}\n  What it has is unknown, not absent."
