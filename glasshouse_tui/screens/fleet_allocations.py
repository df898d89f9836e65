"""Fleet's allocations: their rows, the totals, and what of them needs somebody."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from engine.plan import RENTED
from engine.store.views import AllocationView, RunSummary
from glasshouse_tui.allocation_status import by_hand, is_left_alone, is_open, is_parked, price, totals
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
from glasshouse_tui.state_styles import UNKNOWN, look
from glasshouse_tui.widgets.paint import Line, line
from glasshouse_tui.widgets.table import Column, Row

if TYPE_CHECKING:
    from engine.allocations.overview import Listed, Overview

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
_NAMED: Final = 2


def living(runs: Iterable[RunSummary]) -> frozenset[str]:
    """The ids of the runs that go on under a living runner."""
    return frozenset(run.id for run in runs if not is_final(run) and not run.orphaned)


def ordered(allocations: Iterable[AllocationView]) -> list[AllocationView]:
    """What needs somebody first, then what is open, then the rest; each newest first."""
    last = len(_URGENCY)
    return sorted(allocations, key=lambda one: _URGENCY.index(one.state) if one.state in _URGENCY else last)


def left_alone(allocations: Iterable[AllocationView], living_runs: Collection[str | None]) -> list[AllocationView]:
    """Those that are open without a living run, and that nobody asked to keep."""
    return [one for one in allocations if is_left_alone(one, living_runs)]


def can_keep(one: AllocationView, living_runs: Collection[str | None]) -> bool:
    """True for a rented one that a living run has, or that is kept already."""
    return one.provider in RENTED and (one.state == "kept" or (one.state == "active" and one.run_id in living_runs))


def can_release(one: AllocationView, living_runs: Collection[str | None]) -> bool:
    """True for what is open and no living run has."""
    return is_open(one) and one.run_id not in living_runs


def rows(allocations: Iterable[AllocationView], seen: Overview | None, now: datetime) -> list[Row]:
    """Ours by urgency, then the foreign ones that were seen when the providers were asked last."""
    listed = {one.id: one for one in seen.allocations if one.ours} if seen else {}
    foreign = [one for one in seen.allocations if not one.ours] if seen else []
    ours = [allocation_row(one, now, listed.get(one.id)) for one in ordered(allocations)]
    return [*ours, *(_foreign_row(one, now) for one in foreign)]


def allocation_row(allocation: AllocationView, now: datetime, seen: Listed | None = None) -> Row:
    """One allocation as a row of `ALLOCATION_COLUMNS`."""
    age = seconds_between(allocation.created_at, allocation.released_at or now)
    name_tone = "bad" if allocation.state == "leaked" else "strong"
    return Row(
        allocation.id,
        {
            "name": line((plain(allocation.name.removeprefix("glasshouse-"), 80), name_tone)),
            "provider": line(plain(allocation.provider, 20)),
            "gpu": line((gpu(allocation.gpu_model), "plain")),
            "state": _state(allocation, now, seen),
            "price": line((money(allocation.price_per_hour, "/h"), "plain")),
            "age": line((duration(age), "muted")),
            "spent": line((money(allocation.spent), "plain")),
            "run": line((short_id(allocation.run_id) if allocation.run_id else DASH, "muted")),
        },
    )


def _state(allocation: AllocationView, now: datetime, seen: Listed | None) -> Line:
    shown = look("cleanup", allocation.state)
    if allocation.state == "kept":
        left = seconds_between(now.isoformat(), allocation.keep_until.utc if allocation.keep_until else None)
        return line((f"{shown.shape} kept {_coarse(left)}", shown.tone))
    same = seen is not None and seen.state == allocation.state and is_open(allocation)
    told = _OBSERVED.get(seen.observation or "") if seen is not None and same else None
    if told and allocation.state != "leaked":
        return line((told, "warn"))
    return line((shown.text, shown.tone))


def _coarse(seconds: float | None) -> str:
    return DASH if seconds is None else duration(max(60.0, seconds)).split()[0]


def _foreign_row(one: Listed, now: datetime) -> Row:
    cells = {
        "name": plain(one.name, 80),
        "provider": plain(one.provider, 20),
        "gpu": gpu(one.gpu_model),
        "state": f"{DASH} not ours",
        "price": money(one.price_per_hour, "/h"),
        "age": duration(seconds_between(one.since, now)),
        "spent": DASH,
        "run": DASH,
    }
    key = f"foreign:{one.provider}:{one.allocation_id or one.name}"
    return Row(key, {name: line((text, "muted")) for name, text in cells.items()})


def title(allocations: Sequence[AllocationView]) -> Line:
    """`Allocations   2 open at $0.78/h, $3.10 spent`."""
    known = [one.spent for one in allocations if one.spent is not None]
    found = totals(allocations)
    rate = f" at {money(found.price_per_hour, '/h')}" if found.price_per_hour else ""
    kept = f", {found.kept} kept" if found.kept else ""
    spent = f", {money(sum(known))} spent" if known else ""
    return line(("Allocations", "strong"), (f"   {found.open} open{rate}{kept}{spent}", "muted"))


def notices(
    allocations: Sequence[AllocationView], living_runs: Collection[str | None], seen: Overview | None
) -> list[Line]:
    """What needs somebody, each with what to do; then what the last look at the providers gave."""
    lines: list[Line] = []
    lost = [one for one in allocations if one.state == "leaked"]
    lines += [
        line(
            (f"✗ {plain(one.name, 60)} is not proven gone and may go on costing {price(one.price_per_hour)}: ", "bad"),
            (f"R tries again; or end it {by_hand(one.provider, one.provider_id)}.", "plain"),
        )
        for one in lost[:_NAMED]
    ]
    if len(lost) > _NAMED:
        lines.append(line((f"✗ and {len(lost) - _NAMED} more that are not proven gone.", "bad")))
    alone = [one for one in left_alone(allocations, living_runs) if one.state != "leaked"]
    parked = [one for one in alone if is_parked(one)]
    if parked:
        lines.append(
            line(
                (f"! {_count(parked)} asked for without an answer and may exist: ", "warn"),
                (f"R looks again; or look {by_hand(parked[0].provider, None)}.", "plain"),
            )
        )
    alone = [one for one in alone if not is_parked(one)]
    if alone:
        rate = money(sum(one.price_per_hour or 0.0 for one in alone), "/h")
        lines.append(
            line(
                (f"! {_count(alone)} open without a living run, at {rate}: ", "warn"),
                ("r resumes the run, R releases the allocation.", "plain"),
            )
        )
    return lines + (_look_lines(seen) if seen else [])


def _count(found: Sequence[AllocationView]) -> str:
    return "1 allocation is" if len(found) == 1 else f"{len(found)} allocations are"


def _look_lines(seen: Overview) -> list[Line]:
    lines = [
        line((f"? {plain(trouble.provider, 20)} could not be asked: {plain(trouble.message, 160)}", "warn"))
        for trouble in seen.troubles
    ]
    foreign = sum(not one.ours for one in seen.allocations)
    told = "nothing that is not ours" if not foreign else f"{foreign} not ours, shown and never touched"
    if not seen.troubles or foreign:
        lines.append(line((f"Looked at {clock(seen.at)}: {told}.", "muted")))
    return lines


def detail(one: AllocationView) -> Line:
    """What the columns leave out of the allocation under the cursor."""
    parts = [one.id]
    if one.provider_id and one.provider_id != one.name:
        parts.append(plain(one.provider_id, 60))
    if one.keep_until and one.state == "kept":
        parts.append(f"kept until {clock(one.keep_until.utc)}")
    if one.deadline and is_open(one) and parse_time(one.deadline.utc):
        parts.append(f"ends itself by {moment(one.deadline.utc)}")
    if one.reason:
        parts.append(plain(one.reason, 200))
    return line((" · ".join(parts), "muted"))
