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
from glasshouse_tui.run_metrics import active_segment, is_final, overhead, run_fraction, seconds_left
from glasshouse_tui.screens.base import ConsoleScreen
from glasshouse_tui.screens.fleet_allocations import (
    ALLOCATION_COLUMNS,
    active_run_ids,
    allocation_detail,
    allocation_notices,
    allocation_rows,
    allocations_title,
    by_urgency,
    can_keep,
    can_release,
    unused_allocations,
)
from glasshouse_tui.state_styles import state_style, verdict_style
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
_DEMO: Final = " to run the demo: a small training job on this machine, raw, then protected, in about a minute."


class FleetScreen(ConsoleScreen):
    """All allocations and the newest runs."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(FLEET)]

    def __init__(self) -> None:
        super().__init__()
        self._data: FleetData | None = None
        self._latest: Overview | None = None
        self._restored_run: str | None = None
        self._focused_once = False

    def compose(self) -> ComposeResult:
        """Both tables, or a welcome that says how to begin."""
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
        """Redraw every second, so that ages and times left stay current between readings."""
        self.set_class(True, "-empty")
        self.set_interval(1.0, self._redraw)

    def interest(self) -> FleetInterest:
        """Runs and allocations."""
        return FleetInterest()

    def on_fleet_read(self, message: FleetRead) -> None:
        """Show a reading."""
        self._data = message.data
        self._redraw()

    def show_providers(self, latest: Overview) -> None:
        """Show what the providers listed, ours and foreign."""
        self._latest = latest
        self._redraw()

    def on_row_table_moved(self, _message: RowTable.Moved) -> None:
        """Update the detail line and the key bar for the row under the cursor."""
        self._show_detail()
        self.refresh_keys()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Show the detail line of the allocation under the cursor while its table has the focus."""
        self._show_detail()
        super().on_descendant_focus(event)

    def on_row_table_opened(self, _message: RowTable.Opened) -> None:
        """Open the row that was clicked twice."""
        self.action_open()

    def action_open(self) -> None:
        """Open the run under the cursor, or the run that uses the allocation under it."""
        if subject := self.subject():
            self.console.open_run(subject[0])

    def action_demo(self) -> None:
        """Start the demo run."""
        self.console.start_demo()

    def action_keep(self) -> None:
        """Ask how long to keep the allocation under the cursor."""
        if allocation := self._allocation():
            self.console.ask_keep(allocation)

    def action_release(self) -> None:
        """Release the allocation under the cursor after a confirmation."""
        if allocation := self._allocation():
            self.console.ask_release(allocation)

    def action_query_providers(self) -> None:
        """List the allocations of all providers."""
        self.console.query_providers()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Hide keep and release where they do not apply."""
        if action in ("keep", "release"):
            allocation, applies = self._allocation(), can_keep if action == "keep" else can_release
            if allocation is None or not applies(allocation, self._active_runs()):
                return False
        return super().check_action(action, parameters)

    def applicable(self) -> tuple[bool, ...]:
        """Also whether the allocation under the cursor can be kept or released."""
        allocation, runs = self._allocation(), self._active_runs()
        if allocation is None:
            return (*super().applicable(), False, False)
        return (*super().applicable(), can_keep(allocation, runs), can_release(allocation, runs))

    def subject(self) -> tuple[str, str] | None:
        """The run under the cursor of the table that has the focus."""
        if self._data is None:
            return None
        key = self.query_one("#runs", RowTable).cursor_key
        if self.query_one("#allocations", RowTable).has_focus:
            allocation = self._allocation()
            key = allocation.run_id if allocation else None
        summary = self._summary(key)
        return (key, summary.label if summary else "") if key else None

    def can_cancel(self) -> bool:
        """True for an unfinished run."""
        summary = self._under_cursor()
        return summary is not None and not is_final(summary)

    def can_resume(self) -> bool:
        """True for a run that has no runner."""
        summary = self._under_cursor()
        return summary is not None and summary.orphaned

    def state(self) -> dict[str, Any]:
        """The selected run."""
        return {"run": self.query_one("#runs", RowTable).cursor_key}

    def restore(self, state: dict[str, Any]) -> None:
        """Select the run that was selected in the previous session."""
        self._restored_run = state.get("run") if isinstance(state.get("run"), str) else None
        self._redraw()

    def _allocation(self) -> AllocationView | None:
        """Our allocation under the cursor, if its table has the focus."""
        table = self.query_one("#allocations", RowTable)
        if self._data is None or not table.has_focus:
            return None
        return next((entry for entry in self._data.allocations if entry.id == table.cursor_key), None)

    def _active_runs(self) -> frozenset[str]:
        return active_run_ids(self._data.runs if self._data else ())

    def _summary(self, run_id: str | None) -> RunSummary | None:
        runs = self._data.runs if self._data else ()
        return next((run for run in runs if run.id == run_id), None)

    def _redraw(self) -> None:
        if self._data is None or not self.in_front:
            return
        data, now = self._data, self.console.now()
        foreign = self._latest is not None and (self._latest.troubles or self._latest.allocations)
        empty = not data.runs and not data.allocations and not foreign
        self.set_class(empty, "-empty")
        if empty:
            self.query_one("#welcome", Lines).show(self._welcome())
        unfinished = sum(not is_final(run) for run in data.runs)
        ended = len(data.runs) - unfinished
        counted = f"{ended} ended" if len(data.runs) < FLEET_RUNS else f"newest {ended} ended"
        heading = line(("Runs", "strong"), (f"   {unfinished} unfinished, {counted}", "muted"))
        self.query_one("#runs-title", Lines).show([heading])
        table = self.query_one("#runs", RowTable)
        table.show([run_row(data.views[run.id], now) for run in data.runs], cursor=self._restored_run)
        self._restored_run = None
        unused = unused_allocations(by_urgency(data.allocations), self._active_runs())
        take_focus = bool(unused) and not self._focused_once and not self.console.has_key_input
        allocations = self.query_one("#allocations", RowTable)
        self.query_one("#allocations-title", Lines).show([allocations_title(data.allocations)])
        self._show_lines("#allocations-notice", allocation_notices(data.allocations, self._active_runs(), self._latest))
        rows = allocation_rows(data.allocations, self._latest, now)
        allocations.show(rows, cursor=unused[0].id if take_focus else None)
        if take_focus:
            allocations.focus()
        elif not empty and self.focused is None:
            table.focus()
        self._focused_once = True
        self._show_detail()
        self.refresh_keys()

    def _show_detail(self) -> None:
        allocation = self._allocation()
        self._show_lines("#allocation-detail", [allocation_detail(allocation)] if allocation else [])

    def _show_lines(self, selector: str, lines: list[Line]) -> None:
        """Show lines in a widget that is hidden while there are none."""
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
            line(("Press ", "plain"), (" d ", "key"), (_DEMO, "plain")),
        ]


def run_row(view: RunView, now: datetime) -> Row:
    """One run as a row of `RUN_COLUMNS`."""
    summary = view.summary
    segment = active_segment(view)
    attested = state_style("attestation", summary.attestation)
    figure = overhead(view)
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
            "overhead": line((percent(figure[0]) if figure and final else DASH, "plain")),
            "when": line((when if final or left is not None else DASH, "muted")),
        },
    )


def _state(view: RunView) -> Line:
    summary, segment = view.summary, active_segment(view)
    if summary.orphaned:
        return line(("! no runner", "warn"))
    if summary.state == "running" and segment is not None:
        style = state_style("segment", segment.state)
    else:
        style = state_style("run", summary.state)
    return line((style.text, style.tone))


def _coarse(seconds: float) -> str:
    """A duration in its largest unit, for a narrow column."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds).split()[0]


def _progress(view: RunView) -> Line:
    fraction, segment = run_fraction(view), active_segment(view)
    return (*bar(fraction, _BAR, segment.kind if segment else "busy"), (f" {whole_percent(fraction):>5}", "plain"))


def _outcome(summary: RunSummary) -> Line:
    if summary.state != "finished":
        return line((plain(summary.reason) or DASH, "muted"))
    style = verdict_style(summary.clean)
    return line((style.text, style.tone))
