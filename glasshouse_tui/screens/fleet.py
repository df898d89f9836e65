"""Fleet, the home screen: runs and allocations."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical

from engine.store.views import AllocationView, RunSummary, RunView
from glasshouse_tui.bindings import FLEET, bindings_for
from glasshouse_tui.format import (
    DASH,
    clock,
    day,
    duration,
    loss,
    percent,
    plain,
    rate,
    seconds_between,
    short_id,
    whole_percent,
)
from glasshouse_tui.messages import FleetData, FleetRead
from glasshouse_tui.poller import FLEET_RUNS, FleetInterest
from glasshouse_tui.run_metrics import active_segment, is_final, overhead, run_share, seconds_left
from glasshouse_tui.screens.base import ConsoleScreen
from glasshouse_tui.screens.fleet_allocations import (
    ALLOCATION_COLUMNS,
    can_keep,
    can_release,
    detail,
    left_alone,
    living,
    notices,
    ordered,
    rows,
    title,
)
from glasshouse_tui.state_styles import clean_look, look
from glasshouse_tui.widgets.paint import Line, Lines, bar, line
from glasshouse_tui.widgets.table import Column, Row, RowTable

if TYPE_CHECKING:
    from engine.allocations.overview import Overview

RUN_COLUMNS: Final = (
    Column("run", "RUN", 8, drop=8),
    Column("label", "LABEL", 8, flex=2),
    Column("segment", "SEGMENT", 9, drop=7),
    Column("state", "STATE", 12),
    Column("progress", "PROGRESS", 12, flex=1),
    Column("rate", "STEPS/S", 7, align="right", drop=2),
    Column("loss", "LOSS", 6, align="right", drop=3),
    Column("attestation", "ATTESTED", 10, flex=1, drop=1),
    Column("overhead", "OVERHEAD", 9, align="right", drop=9),
    Column("when", "WHEN", 9, align="right"),
)
_BAR: Final = 6


class FleetScreen(ConsoleScreen):
    """Everything that is rented and everything that runs."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(FLEET)]

    def __init__(self) -> None:
        super().__init__()
        self._data: FleetData | None = None
        self._seen: Overview | None = None
        self._wanted: str | None = None
        self._mentioned = False

    def compose(self) -> ComposeResult:
        """Both tables, or what to press first."""
        yield self.top_bar()
        with Vertical(id="body"):
            yield Lines([line(("Opening ", "muted"), (str(self.console.home), "muted"))], id="welcome")
            yield Lines(id="runs-title", classes="title")
            yield RowTable(RUN_COLUMNS, id="runs")
            yield Lines(id="allocations-title", classes="title")
            yield Lines(id="allocations-notice", classes="wraps")
            yield RowTable(ALLOCATION_COLUMNS, id="allocations")
            yield Lines(id="allocation-detail", classes="wraps")
        yield self.key_bar()

    def on_mount(self) -> None:
        """Ages and times left go on between readings."""
        self.set_class(True, "-empty")
        self.set_interval(1.0, self._redraw)

    def interest(self) -> FleetInterest:
        """Runs and allocations."""
        return FleetInterest()

    def on_fleet_read(self, message: FleetRead) -> None:
        """Show a reading."""
        self._data = message.data
        self._redraw()

    def show_look(self, seen: Overview) -> None:
        """Show what the providers listed, ours and foreign."""
        self._seen = seen
        self._redraw()

    def on_row_table_moved(self, _message: RowTable.Moved) -> None:
        """Other keys may apply to another row."""
        self._show_detail()
        self.refresh_keys()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """The allocation under the cursor is told of while its table has the focus."""
        self._show_detail()
        super().on_descendant_focus(event)

    def on_row_table_opened(self, _message: RowTable.Opened) -> None:
        """A second click opens."""
        self.action_open()

    def action_open(self) -> None:
        """Open the run under the cursor, or the one on the allocation under it."""
        if subject := self.subject():
            self.console.open_run(subject[0])

    def action_demo(self) -> None:
        """Start the demo run."""
        self.console.start_demo()

    def action_keep(self) -> None:
        """Ask for how long the allocation under the cursor is kept."""
        if allocation := self._allocation():
            self.console.ask_keep(allocation)

    def action_release(self) -> None:
        """Ask, then end the allocation under the cursor."""
        if allocation := self._allocation():
            self.console.ask_release(allocation)

    def action_look(self) -> None:
        """Ask the providers what is there."""
        self.console.query_providers()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keeping and releasing apply to some allocations only."""
        if action in ("keep", "release"):
            allocation, fits = self._allocation(), can_keep if action == "keep" else can_release
            if allocation is None or not fits(allocation, self._living()):
                return False
        return super().check_action(action, parameters)

    def applies(self) -> tuple[bool, ...]:
        """Also whether the allocation under the cursor can be kept or released."""
        allocation, runs = self._allocation(), self._living()
        ours = allocation is not None and (can_keep(allocation, runs), can_release(allocation, runs))
        return (*super().applies(), *(ours or (False, False)))

    def subject(self) -> tuple[str, str] | None:
        """The run under the cursor of the table that has the focus."""
        if self._data is None:
            return None
        key = self.query_one("#runs", RowTable).cursor_key
        if self.query_one("#allocations", RowTable).has_focus:
            found = self._allocation()
            key = found.run_id if found else None
        summary = self._summary(key)
        return (key, summary.label if summary else "") if key else None

    def can_cancel(self) -> bool:
        """True for a run that goes on."""
        summary = self._under_cursor()
        return summary is not None and not is_final(summary)

    def can_resume(self) -> bool:
        """True for a run that nobody is running."""
        summary = self._under_cursor()
        return summary is not None and summary.orphaned

    def state(self) -> dict[str, Any]:
        """The selected run."""
        return {"run": self.query_one("#runs", RowTable).cursor_key}

    def restore(self, state: dict[str, Any]) -> None:
        """Select the run of the session before."""
        self._wanted = state.get("run") if isinstance(state.get("run"), str) else None
        self._redraw()

    def _allocation(self) -> AllocationView | None:
        """Ours under the cursor, while its table has the focus."""
        table = self.query_one("#allocations", RowTable)
        if self._data is None or not table.has_focus:
            return None
        return next((one for one in self._data.allocations if one.id == table.cursor_key), None)

    def _living(self) -> frozenset[str]:
        return living(self._data.runs if self._data else ())

    def _summary(self, run_id: str | None) -> RunSummary | None:
        runs = self._data.runs if self._data else ()
        return next((run for run in runs if run.id == run_id), None)

    def _redraw(self) -> None:
        if self._data is None or not self.in_front:
            return
        data, now = self._data, self.console.now()
        foreign = self._seen is not None and (self._seen.troubles or self._seen.allocations)
        empty = not data.runs and not data.allocations and not foreign
        self.set_class(empty, "-empty")
        if empty:
            self.query_one("#welcome", Lines).show(self._welcome())
        going = sum(not is_final(run) for run in data.runs)
        ended = len(data.runs) - going
        told = f"{ended} ended" if len(data.runs) < FLEET_RUNS else f"the newest {ended} that ended"
        self.query_one("#runs-title", Lines).show([line(("Runs", "strong"), (f"   {going} going on, {told}", "muted"))])
        table = self.query_one("#runs", RowTable)
        table.show([run_row(data.views[run.id], now) for run in data.runs], cursor=self._wanted)
        self._wanted = None
        alone = left_alone(ordered(data.allocations), self._living())
        mention = bool(alone) and not self._mentioned and not self.console.acted
        allocations = self.query_one("#allocations", RowTable)
        self.query_one("#allocations-title", Lines).show([title(data.allocations)])
        self._show_lines("#allocations-notice", notices(data.allocations, self._living(), self._seen))
        allocations.show(rows(data.allocations, self._seen, now), cursor=alone[0].id if mention else None)
        if mention:
            allocations.focus()
        elif not empty and self.focused is None:
            table.focus()
        self._mentioned = True
        self._show_detail()
        self.refresh_keys()

    def _show_detail(self) -> None:
        allocation = self._allocation()
        self._show_lines("#allocation-detail", [detail(allocation)] if allocation else [])

    def _show_lines(self, selector: str, lines: list[Line]) -> None:
        """Lines that take no room while there are none."""
        widget = self.query_one(selector, Lines)
        widget.display = bool(lines)
        widget.show(lines)

    def _under_cursor(self) -> RunSummary | None:
        subject = self.subject()
        return self._summary(subject[0]) if subject else None

    def _welcome(self) -> list[Line]:
        if self.console.read_only:
            return [line(("Nothing has run here yet, and this console is read-only.", "plain"))]
        return [
            line(("Nothing has run here yet.", "strong")),
            (),
            line(
                ("Press ", "plain"), (" d ", "key"),
                (" to run the demo: one small job on this machine, raw, then protected, in about a minute.", "plain"),
            ),
        ]  # fmt: skip


def run_row(view: RunView, now: datetime) -> Row:
    """One run as a row of `RUN_COLUMNS`."""
    summary = view.summary
    segment = active_segment(view)
    attested = look("attestation", summary.attestation)
    found = overhead(view)
    final = is_final(summary)
    left = seconds_left(view)
    ended = summary.finished_at or summary.created_at
    age = seconds_between(ended, now)
    when = f"{_coarse(left)} left" if left is not None else clock(ended) if (age or 0) < 43_200 else day(ended)
    value = (segment.final_loss if segment.final_loss is not None else segment.last_loss) if segment else None
    return Row(
        summary.id,
        {
            "run": line((short_id(summary.id), "muted")),
            "label": line((plain(summary.label, 80), "strong")),
            "segment": line((segment.kind, segment.kind)) if segment and not final else line((DASH, "muted")),
            "state": _state(view),
            "progress": _outcome(summary) if final else _progress(view),
            "rate": line(rate(segment.steps_per_second if segment else None)),
            "loss": line(loss(value)),
            "attestation": line((attested.text, attested.tone)),
            "overhead": line((percent(found[0]) if found and final else DASH, "plain")),
            "when": line((when if final or left is not None else DASH, "muted")),
        },
    )


def _state(view: RunView) -> Line:
    summary, segment = view.summary, active_segment(view)
    if summary.orphaned:
        return line(("! unattended", "warn"))
    if summary.state == "running" and segment is not None:
        shown = look("segment", segment.state)
    else:
        shown = look("run", summary.state)
    return line((shown.text, shown.tone))


def _coarse(seconds: float) -> str:
    """Time in its largest unit, for a narrow column."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds).split()[0]


def _progress(view: RunView) -> Line:
    share, segment = run_share(view), active_segment(view)
    return (*bar(share, _BAR, segment.kind if segment else "busy"), (f" {whole_percent(share):>5}", "plain"))


def _outcome(summary: RunSummary) -> Line:
    if summary.state != "finished":
        return line((plain(summary.reason) or DASH, "muted"))
    shown = clean_look(summary.clean)
    return line((shown.text, shown.tone))
