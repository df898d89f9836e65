"""`cleanup`: terminate our allocations after a confirmation, and prove that they are gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from engine.errors import UsageError
from glasshouse_tui.allocation_status import by_hand, is_open, price, totals
from glasshouse_tui.commands.allocations import HEAD, cells
from glasshouse_tui.commands.base import AllocationSubcommand, Session, open_reader, session_of
from glasshouse_tui.commands.confirm import confirm, require_terminal
from glasshouse_tui.commands.output import as_builtins, emit_json, emit_text, plain, say, table

if TYPE_CHECKING:
    from engine.allocations.cleanup import Ended
    from engine.allocations.overview import Listed, Overview

PROVEN: Final = ("gone", "not_ours")
_SHOWN: Final = 4


@click.command(cls=AllocationSubcommand, short_help="Terminate allocations and prove that they are gone.")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def cleanup(context: click.Context, ids: tuple[str, ...], yes: bool) -> int:
    """Terminate our allocations and prove that they are gone; without ID, all that no active run uses.

    ID is any unique prefix of an allocation's id or of the provider's id, or its full name. Foreign allocations are
    never touched. The allocation of an active run is refused: cancel the run first. Exits 0 if all are proven gone.
    """
    from engine.allocations.cleanup import clean_up
    from engine.allocations.overview import overview

    session = session_of(context)
    busy = _busy(session)
    known = overview(session.home, query=False)
    selected = _selected(known, ids, busy)
    if not selected:
        _print_nothing(session, known)
        return 0
    if not session.json:
        say(table(HEAD, [cells(entry) for entry in selected], right=frozenset({3, 4, 5})))
    if not yes:
        _confirm(session, selected)
    ended = clean_up(session.home, [entry.id for entry in selected if entry.id is not None], say_phase)
    if session.json:
        emit_json({"ended": as_builtins(ended)})
    else:
        provider_ids = {entry.id: entry.allocation_id for entry in selected}
        emit_text("\n".join(proof_text(entry, provider_ids.get(entry.id)) for entry in ended))
    return 0 if all(entry.outcome in PROVEN for entry in ended) else 1


def say_phase(text: str) -> None:
    """Write a line about the progress to stderr."""
    say(plain(text))


def _busy(session: Session) -> frozenset[str]:
    """The ids of the allocations that a live process uses."""
    from engine.allocations.cleanup import in_use

    reader = open_reader(session)
    return frozenset(entry.id for entry in reader.allocations(open_only=True) if in_use(reader, entry))


def _selected(known: Overview, ids: Sequence[str], busy: frozenset[str]) -> list[Listed]:
    """The allocations to terminate.

    Raises `UsageError`: `allocation_unknown`, `allocation_ambiguous`, `allocation_in_use`.
    """
    if not ids:
        return [entry for entry in known.allocations if entry.ours and is_open(entry) and entry.id not in busy]
    matches = (find_allocation(known.allocations, typed) for typed in ids)
    selected = list({entry.id: entry for entry in matches}.values())
    for entry in selected:
        if entry.id in busy:
            user = "a self-test" if entry.run_id is None else f"run {entry.run_id}"
            raise UsageError(
                f"Allocation {entry.id} is in use by {user}.",
                "Interrupt the self-test with Ctrl-C; it then terminates the allocation."
                if entry.run_id is None
                else f"`glasshouse cancel {entry.run_id}` ends the run and terminates its allocation.",
                code="allocation_in_use",
            )
    return selected


def find_allocation(allocations: Sequence[Listed], typed: str) -> Listed:
    """The allocation of ours that `typed` names.

    Raises `UsageError`: `allocation_unknown`, `allocation_ambiguous`.
    """
    ours = [entry for entry in allocations if entry.ours and entry.id is not None]
    exact = [entry for entry in ours if typed in (entry.id, entry.allocation_id, entry.name)]
    matches = exact or [
        entry for entry in ours if typed and any(i.startswith(typed) for i in (entry.id, entry.allocation_id) if i)
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        shown = ", ".join(str(entry.id) for entry in matches[:_SHOWN]) + (", ..." if len(matches) > _SHOWN else "")
        raise UsageError(
            f"Several allocations match {typed}: {shown}.",
            "Give more of the id.",
            code="allocation_ambiguous",
        )
    raise UsageError(
        f"None of our open allocations matches {typed}.",
        "List them with `glasshouse allocations`. Foreign allocations are never terminated from here.",
        code="allocation_unknown",
    )


def _confirm(session: Session, selected: Sequence[Listed]) -> None:
    """Ask for confirmation; raises `UsageError` (`confirmation_needed`) off a terminal, `Declined` on no."""
    what = "this allocation" if len(selected) == 1 else f"these {len(selected)} allocations"
    require_terminal(f"Terminating {what}", json=session.json)
    cost = totals(selected)
    confirm(
        f"Terminate {what} ({price(cost.price_per_hour)})? All data there is lost.", declined="Nothing was terminated."
    )


def _print_nothing(session: Session, known: Overview) -> None:
    if session.json:
        emit_json({"ended": []})
        return
    busy = sum(is_open(entry) for entry in known.allocations)
    in_use = f" Allocations in use by active runs: {busy}." if busy else ""
    emit_text(f"There is nothing to terminate.{in_use} Foreign allocations are never touched.")


def proof_text(entry: Ended, provider_id: str | None) -> str:
    """The outcome for one allocation, and its proof."""
    name = f"{plain(entry.id)}  {plain(entry.name)}"
    if entry.outcome == "gone":
        others = "others not counted" if entry.others is None else f"others untouched: {entry.others}"
        return f"gone     {name}: absent in {entry.listings} successful listings; {others}"
    if entry.outcome == "not_ours":
        return f"let go   {name}: {plain(entry.reason)}"
    hint = f"\n         {plain(entry.hint)}" if entry.hint else ""
    loud = "LEAKED" if entry.outcome == "leaked" else "UNKNOWN"
    return (
        f"{loud:<8} {name} may still be billed at {price(entry.price_per_hour)}: {plain(entry.reason)}{hint}\n"
        f"         Try again, or terminate it {by_hand(entry.provider, provider_id)}."
    )
