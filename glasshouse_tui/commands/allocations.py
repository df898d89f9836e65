"""`allocations`: list the allocations, what they have cost, and which need attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from engine.system.clock import utc
from glasshouse_tui.allocation_status import FOREIGN, Totals, alarm, by_hand, totals
from glasshouse_tui.commands.base import AllocationSubcommand, open_reader, session_of
from glasshouse_tui.commands.output import UNKNOWN, as_builtins, emit_json, emit_text, known, plain, say, table
from glasshouse_tui.format import duration, gpu, moment, money, short_id

if TYPE_CHECKING:
    from engine.allocations.overview import Listed, Overview, Trouble

HEAD: Final = ("id", "provider", "GPU", "price", "age", "spent", "state", "run")
_NUMBERS: Final = frozenset({3, 4, 5})


@click.command(cls=AllocationSubcommand, short_help="List allocations and what they have cost.")
@click.option("--all", "ended", is_flag=True, help="Include those that are gone.")
@click.option("--offline", is_flag=True, help="Read only the ledger; query no provider, list nothing foreign.")
@click.pass_context
def allocations(context: click.Context, ended: bool, offline: bool) -> int:
    """List allocations, ours and foreign: GPU, price, age, cost so far, state and run.

    Foreign allocations are shown but never touched. Exits 1 if a provider could not be queried: its allocations are
    then unknown, not absent.
    """
    from engine.allocations.overview import overview

    session = session_of(context)
    open_reader(session).data_version()
    listing = overview(session.home, query=not offline, ended=ended)
    if session.json:
        emit_json(_document(listing))
    else:
        emit_text(listing_text(listing, offline=offline))
        for trouble in listing.troubles:
            say(trouble_text(trouble))
    return 1 if any(trouble.host is None for trouble in listing.troubles) else 0


def _document(listing: Overview) -> dict[str, Any]:
    sums = totals(listing.allocations)
    return {
        **as_builtins(listing),
        "totals": {
            "open": sums.open,
            "kept": sums.kept,
            "leaked": sums.leaked,
            "foreign": sums.foreign,
            "pricePerHour": round(sums.price_per_hour, 6),
            "spent": round(sums.spent, 6),
            "complete": sums.complete,
        },
    }


def listing_text(listing: Overview, *, offline: bool) -> str:
    """The table, the totals, and a warning for every allocation that needs attention."""
    offline_note = "" if not offline else " No provider was queried."
    if not listing.allocations:
        return f"Nothing is rented.{offline_note}" if not listing.troubles else "The ledger has no open allocations."
    blocks = [table(HEAD, [cells(entry) for entry in listing.allocations], right=_NUMBERS)]
    blocks.append(totals_text(totals(listing.allocations)) + offline_note)
    blocks += [text for entry in listing.allocations if (text := alarm_text(entry))]
    return "\n\n".join(blocks)


def cells(entry: Listed) -> tuple[str, ...]:
    """One row under `HEAD`."""
    age = entry.age_sec
    return (
        plain(entry.id or entry.allocation_id or UNKNOWN),
        plain(entry.provider),
        gpu(entry.gpu_model) if entry.gpu_model else UNKNOWN,
        UNKNOWN if entry.price_per_hour is None else money(entry.price_per_hour, "/h"),
        UNKNOWN if age is None else duration(age),
        "-" if not entry.ours and entry.spent is None else UNKNOWN if entry.spent is None else money(entry.spent),
        _state(entry),
        plain(entry.name) if not entry.ours else _run(entry),
    )


def _state(entry: Listed) -> str:
    state = plain(entry.state).replace("_", " ")
    if entry.state == "kept" and entry.keep_until:
        state = f"kept until {moment(entry.keep_until)}"
    if entry.state == "leaked":
        state = "LEAKED"
    as_expected = entry.observation in (None, "alive") or entry.state in ("gone", "not_ours")
    return state if as_expected else f"{state}, {plain(entry.observation)}"


def _run(entry: Listed) -> str:
    return "-" if entry.run_id is None else f"{short_id(entry.run_id)} {known(entry.run_state)}"


def totals_text(sums: Totals) -> str:
    """`2 open at $0.78/h, $3.10 spent so far; 1 foreign, shown only`."""
    least = "" if sums.complete else "at least "
    text = f"{sums.open} open"
    if sums.open:
        text += f" at {least}{money(sums.price_per_hour, '/h')}, {least}{money(sums.spent)} spent so far"
    if sums.foreign:
        text += f"; {sums.foreign} foreign, shown only"
    return f"{text}. Prices in USD, times in {utc().astimezone().tzname() or 'local time'}."


def alarm_text(entry: Listed) -> str:
    """The warning about an allocation, and how to terminate it; empty if there is none."""
    if entry.state == FOREIGN or not (text := alarm(entry)):
        return ""
    reason = f"\n  {plain(entry.reason)}" if entry.reason else ""
    reason += f"\n  {plain(entry.hint)}" if entry.hint else ""
    manually = by_hand(entry.provider, entry.allocation_id)
    return f"{text}{reason}\n  `glasshouse cleanup {entry.id}` tries again; or terminate it {manually}."


def trouble_text(trouble: Trouble) -> str:
    """The error about a provider that could not be queried, or a host that cannot be used."""
    if trouble.host is not None:
        hint = f"\n  {plain(trouble.hint)}" if trouble.hint else ""
        return f"error: host {plain(trouble.host)} cannot be used ({trouble.code}): {plain(trouble.message)}{hint}"
    text = f"error: {plain(trouble.provider)} could not be queried: {plain(trouble.message)}"
    hint = f"\n  {plain(trouble.hint)}" if trouble.hint else ""
    return f"{text}{hint}\n  Its allocations are unknown, not absent."
