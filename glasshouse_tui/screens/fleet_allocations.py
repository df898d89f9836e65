"""Fleet's allocations: their rows, the totals, and the warnings about those that need attention."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from engine.plan import RENTED
from engine.store.views import AllocationView, RunSummary
from glasshouse_tui.allocation_status import by_hand, is_open, is_unconfirmed, is_unused, price, totals
from glasshouse_tui.format import (
    DASH,
    clock,
    duration,
    gpu,
    moment,
    money,
    parse_time,
    plain,
    seconds_between,
    short_id,
)
from glasshouse_tui.run_metrics import is_final
from glasshouse_tui.state_styles import UNKNOWN, state_style
from glasshouse_tui.widgets.paint import Line, line
from glasshouse_tui.widgets.table import Column, Row

if TYPE_CHECKING:
    from engine.allocations.overview import Listed, Overview, Trouble

ALLOCATION_COLUMNS: Final = (
    Column("name", "ALLOCATION", 20, flex=2, drop=1),
    Column("provider", "PROVIDER", 8),
    Column("gpu", "GPU", 8, flex=1),
    Column("state", "STATE", 13),
    Column("price", "PRICE", 8, align="right"),
    Column("age", "AGE", 7, align="right"),
    Column("spent", "SPENT", 8, align="right"),
    Column("run", "RUN", 8),
)
_URGENCY: Final = ("leaked", "active", "terminating", "kept")
_OBSERVED: Final = {"stopped": "! stopped", "gone": "! not listed", "unknown": UNKNOWN.text}
_MAX_NAMED: Final = 2


def active_run_ids(runs: Iterable[RunSummary]) -> frozenset[str]:
    """The ids of the unfinished runs that have a live runner."""
    return frozenset(run.id for run in runs if not is_final(run) and not run.orphaned)


def by_urgency(allocations: Iterable[AllocationView]) -> list[AllocationView]:
    """Leaked allocations first, then the other open ones, then the rest; each group newest first."""
    last = len(_URGENCY)
    return sorted(allocations, key=lambda entry: _URGENCY.index(entry.state) if entry.state in _URGENCY else last)


def unused_allocations(
    allocations: Iterable[AllocationView], active_runs: Collection[str | None]
) -> list[AllocationView]:
    """Those that are open without an active run and are not kept."""
    return [entry for entry in allocations if is_unused(entry, active_runs)]


def can_keep(allocation: AllocationView, active_runs: Collection[str | None]) -> bool:
    """True for a rented allocation that an active run uses, or that is kept already."""
    in_use = allocation.state == "active" and allocation.run_id in active_runs
    return allocation.provider in RENTED and (allocation.state == "kept" or in_use)


def can_release(allocation: AllocationView, active_runs: Collection[str | None]) -> bool:
    """True for an open allocation that no active run uses."""
    return is_open(allocation) and allocation.run_id not in active_runs


def allocation_rows(allocations: Iterable[AllocationView], latest: Overview | None, now: datetime) -> list[Row]:
    """Our allocations by urgency, then the foreign ones of the latest query."""
    listed = {entry.id: entry for entry in latest.allocations if entry.ours} if latest else {}
    foreign = [entry for entry in latest.allocations if not entry.ours] if latest else []
    ours = [allocation_row(entry, now, listed.get(entry.id)) for entry in by_urgency(allocations)]
    return [*ours, *(_foreign_row(entry, now) for entry in foreign)]


def allocation_row(allocation: AllocationView, now: datetime, listed: Listed | None = None) -> Row:
    """One allocation as a row of `ALLOCATION_COLUMNS`."""
    age = seconds_between(allocation.created_at, allocation.released_at or now)
    name_tone = "bad" if allocation.state == "leaked" else "strong"
    return Row(
        allocation.id,
        {
            "name": line((plain(allocation.name.removeprefix("glasshouse-"), 80), name_tone)),
            "provider": line(plain(allocation.provider, 20)),
            "gpu": line((gpu(allocation.gpu_model), "plain")),
            "state": _state(allocation, now, listed),
            "price": line((money(allocation.price_per_hour, "/h"), "plain")),
            "age": line((duration(age), "muted")),
            "spent": line((money(allocation.spent), "plain")),
            "run": line((short_id(allocation.run_id) if allocation.run_id else DASH, "muted")),
        },
    )


def _state(allocation: AllocationView, now: datetime, listed: Listed | None) -> Line:
    style = state_style("cleanup", allocation.state)
    if allocation.state == "kept":
        left = seconds_between(now.isoformat(), allocation.keep_until.utc if allocation.keep_until else None)
        return line((f"{style.shape} kept {_coarse(left)}", style.tone))
    current = listed is not None and listed.state == allocation.state and is_open(allocation)
    observed = _OBSERVED.get(listed.observation or "") if listed is not None and current else None
    if observed and allocation.state != "leaked":
        return line((observed, "warn"))
    return line((style.text, style.tone))


def _coarse(seconds: float | None) -> str:
    return DASH if seconds is None else duration(max(60.0, seconds)).split()[0]


def _foreign_row(listed: Listed, now: datetime) -> Row:
    cells = {
        "name": plain(listed.name, 80),
        "provider": plain(listed.provider, 20),
        "gpu": gpu(listed.gpu_model),
        "state": f"{DASH} foreign",
        "price": money(listed.price_per_hour, "/h"),
        "age": duration(seconds_between(listed.since, now)),
        "spent": DASH,
        "run": DASH,
    }
    key = f"foreign:{listed.provider}:{listed.allocation_id or listed.name}"
    return Row(key, {name: line((text, "muted")) for name, text in cells.items()})


def allocations_title(allocations: Sequence[AllocationView]) -> Line:
    """`Allocations   2 open at $0.78/h, $3.10 spent`."""
    costs = [entry.spent for entry in allocations if entry.spent is not None]
    sums = totals(allocations)
    rate = f" at {money(sums.price_per_hour, '/h')}" if sums.price_per_hour else ""
    kept = f", {sums.kept} kept" if sums.kept else ""
    spent = f", {money(sum(costs))} spent" if costs else ""
    return line(("Allocations", "strong"), (f"   {sums.open} open{rate}{kept}{spent}", "muted"))


def allocation_notices(
    allocations: Sequence[AllocationView], active_runs: Collection[str | None], latest: Overview | None
) -> list[Line]:
    """Warnings about allocations that need attention, each with what to do; then the outcome of the latest query."""
    lines: list[Line] = []
    leaked = [entry for entry in allocations if entry.state == "leaked"]
    for entry in leaked[:_MAX_NAMED]:
        billed = f"may still be billed at {price(entry.price_per_hour)}"
        lines.append(
            line(
                (f"✗ {plain(entry.name, 60)} is not proven gone and {billed}: ", "bad"),
                (f"press R to try again, or terminate it {by_hand(entry.provider, entry.provider_id)}.", "plain"),
            )
        )
    if len(leaked) > _MAX_NAMED:
        lines.append(line((f"✗ and {len(leaked) - _MAX_NAMED} more that are not proven gone.", "bad")))
    unused = [entry for entry in unused_allocations(allocations, active_runs) if entry.state != "leaked"]
    unconfirmed = [entry for entry in unused if is_unconfirmed(entry)]
    if unconfirmed:
        lines.append(
            line(
                (f"! {_count(unconfirmed)} unconfirmed (the create call got no answer) and may exist: ", "warn"),
                (f"press R to check again, or check {by_hand(unconfirmed[0].provider, None)}.", "plain"),
            )
        )
    unused = [entry for entry in unused if not is_unconfirmed(entry)]
    if unused:
        rate = money(sum(entry.price_per_hour or 0.0 for entry in unused), "/h")
        lines.append(
            line(
                (f"! {_count(unused)} open without an active run, at {rate}: ", "warn"),
                ("press r to resume the run, or R to release the allocation.", "plain"),
            )
        )
    return lines + (_query_lines(latest) if latest else [])


def _count(entries: Sequence[AllocationView]) -> str:
    return "1 allocation is" if len(entries) == 1 else f"{len(entries)} allocations are"


def _subject(trouble: Trouble) -> str:
    if trouble.host is not None:
        return f"host {plain(trouble.host, 40)} cannot be used"
    return f"{plain(trouble.provider, 20)} could not be queried"


def _query_lines(latest: Overview) -> list[Line]:
    lines = [
        line(
            (f"? {_subject(trouble)}: {plain(trouble.message, 160)}", "warn"),
            (f" {plain(trouble.hint, 160)}", "plain"),
        )
        for trouble in latest.troubles
    ]
    foreign = sum(not entry.ours for entry in latest.allocations)
    counted = f"{foreign} foreign, shown but never touched" if foreign else "no foreign allocations"
    if foreign or all(trouble.host is not None for trouble in latest.troubles):
        lines.append(line((f"Queried at {clock(latest.at)}: {counted}.", "muted")))
    return lines


def allocation_detail(allocation: AllocationView) -> Line:
    """The facts about the allocation under the cursor that the columns leave out."""
    parts = [allocation.id]
    if allocation.provider_id and allocation.provider_id != allocation.name:
        parts.append(plain(allocation.provider_id, 60))
    if allocation.keep_until and allocation.state == "kept":
        parts.append(f"kept until {clock(allocation.keep_until.utc)}")
    if allocation.deadline and is_open(allocation) and parse_time(allocation.deadline.utc):
        parts.append(f"self-terminates by {moment(allocation.deadline.utc)}")
    if allocation.reason:
        parts.append(plain(allocation.reason, 200))
    if allocation.error is not None and allocation.error.hint:
        parts.append(plain(allocation.error.hint, 200))
    return line((" · ".join(parts), "muted"))
