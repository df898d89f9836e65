"""`cleanup`: end what is ours, confirmed, and prove it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from engine.errors import UsageError
from glasshouse_tui.allocation_status import by_hand, is_open, price, totals
from glasshouse_tui.commands.allocations import HEAD, cells
from glasshouse_tui.commands.base import AllocationSubcommand, Session, open_reader, session_of
from glasshouse_tui.commands.output import as_builtins, can_ask, emit_json, emit_text, plain, say, table

if TYPE_CHECKING:
    from engine.allocations.cleanup import Ended
    from engine.allocations.overview import Listed, Overview

PROVEN: Final = ("gone", "not_ours")
_SHOWN: Final = 4


@click.command(cls=AllocationSubcommand, short_help="End what is rented and prove that it is gone.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def cleanup(context: click.Context, ids: tuple[str, ...], yes: bool) -> int:
    """End allocations that are ours and prove that they are gone; without ID, all that no living run has.

    ID is any unique prefix of an allocation's id or of the provider's id, or its whole name. What is not ours is never
    touched, and a run that is going on keeps its allocation: cancel it first. Exits 0 when all are proven gone.
    """
    from engine.allocations.cleanup import clean_up
    from engine.allocations.overview import overview

    session = session_of(context)
    busy = _busy(session)
    known = overview(session.home, look=False)
    wanted = _wanted(known, ids, busy)
    if not wanted:
        _print_nothing(session, known)
        return 0
    if not session.json:
        say(table(HEAD, [cells(one, known.at) for one in wanted], right=frozenset({3, 4, 5})))
    if not yes:
        _ask(session, wanted)
    ended = clean_up(session.home, [one.id for one in wanted if one.id is not None], say_phase)
    if session.json:
        emit_json({"ended": as_builtins(ended)})
    else:
        places = {one.id: one.allocation_id for one in wanted}
        emit_text("\n".join(proof_text(one, places.get(one.id)) for one in ended))
    return 0 if all(one.outcome in PROVEN for one in ended) else 1


def say_phase(text: str) -> None:
    """A line about what goes on, on stderr."""
    say(plain(text))


def _busy(session: Session) -> frozenset[str]:
    """The ids of the allocations that a living runner has."""
    from engine.allocations.cleanup import in_use

    reader = open_reader(session)
    return frozenset(entry.id for entry in reader.allocations(open_only=True) if in_use(reader, entry))


def _wanted(known: Overview, ids: Sequence[str], busy: frozenset[str]) -> list[Listed]:
    """What to end; raises `UsageError`: `allocation_unknown`, `allocation_ambiguous`, `allocation_in_use`."""
    if not ids:
        return [one for one in known.allocations if one.ours and is_open(one) and one.id not in busy]
    wanted = list({one.id: one for one in (find(known.allocations, typed) for typed in ids)}.values())
    for one in wanted:
        if one.id in busy:
            user = "a self-test" if one.run_id is None else f"run {one.run_id}"
            raise UsageError(
                f"Allocation {one.id} is in use by {user}, which goes on.",
                "Interrupt it: that ends the allocation too."
                if one.run_id is None
                else f"`glasshouse cancel {one.run_id}` ends the run and its allocation with it.",
                code="allocation_in_use",
            )
    return wanted


def find(allocations: Sequence[Listed], typed: str) -> Listed:
    """The one of ours that `typed` names; raises `UsageError`: `allocation_unknown`, `allocation_ambiguous`."""
    ours = [one for one in allocations if one.ours and one.id is not None]
    exact = [one for one in ours if typed in (one.id, one.allocation_id, one.name)]
    found = exact or [
        one for one in ours if typed and any(i.startswith(typed) for i in (one.id, one.allocation_id) if i)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(str(one.id) for one in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise UsageError(
            f"Several allocations begin with {typed}: {shown}.", "Give more of the id.", code="allocation_ambiguous"
        )
    raise UsageError(
        f"There is no open allocation {typed} of ours.",
        "List them with `glasshouse allocations`; what is not ours is never ended from here.",
        code="allocation_unknown",
    )


def _ask(session: Session, wanted: Sequence[Listed]) -> None:
    """Have a person agree; raises `UsageError` (`confirmation_needed`) where nobody can, `click.Abort` on no."""
    what = "this allocation" if len(wanted) == 1 else f"these {len(wanted)} allocations"
    if session.json or not can_ask():
        raise UsageError(
            f"Ending {what} needs a yes, and nobody is at a terminal to give it.",
            "Add --yes.",
            code="confirmation_needed",
        )
    cost = totals(wanted)
    click.confirm(f"End {what} ({price(cost.price_per_hour)})? Nothing on it survives.", abort=True, err=True)


def _print_nothing(session: Session, known: Overview) -> None:
    if session.json:
        emit_json({"ended": []})
        return
    busy = sum(is_open(one) for one in known.allocations)
    left = f" {busy} that living runs have are left alone." if busy else ""
    emit_text(f"Nothing is to be ended.{left} What is not ours is never touched.")


def proof_text(one: Ended, provider_id: str | None) -> str:
    """What became of one allocation, and how that is known."""
    name = f"{plain(one.id)}  {plain(one.name)}"
    if one.outcome == "gone":
        others = "others were not counted" if one.others is None else f"others untouched: {one.others}"
        return f"gone     {name}: absent in {one.listings} successful listings; {others}"
    if one.outcome == "not_ours":
        return f"let go   {name}: {plain(one.reason)}"
    loud = "LEAKED" if one.outcome == "leaked" else "UNKNOWN"
    return (
        f"{loud:<8} {name} may go on costing {price(one.price_per_hour)}: {plain(one.reason)}\n"
        f"         Try again, or end it {by_hand(one.provider, provider_id)}."
    )
