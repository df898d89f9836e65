"""Run: both segments side by side, loss, proof, checks, log."""

from __future__ import annotations

import time
from typing import Any, ClassVar, Final

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.css.query import NoMatches

from engine.store.views import RunView
from glasshouse_tui.bindings import RUN, bindings_for
from glasshouse_tui.format import day, duration, gpu, model, moment, plain, seconds_between, short_id, words
from glasshouse_tui.messages import RunData, RunRead
from glasshouse_tui.poller import RunInterest
from glasshouse_tui.provisional_checks import checks_of
from glasshouse_tui.run_metrics import is_final, seconds_left
from glasshouse_tui.screens.base import ConsoleScreen
from glasshouse_tui.state_styles import NO_RUNNER, state_style
from glasshouse_tui.widgets.bars import TopBar
from glasshouse_tui.widgets.lossplot import LossPlot
from glasshouse_tui.widgets.paint import Line, Lines, line, spread
from glasshouse_tui.widgets.panels import (
    LEGEND,
    LOG_COLUMNS,
    advice_lines,
    check_lines,
    fact_lines,
    left_text,
    log_row,
    loss_lines,
    proof_lines,
    warning_row,
)
from glasshouse_tui.widgets.scroll import ScrollPanel
from glasshouse_tui.widgets.segment import SegmentCard
from glasshouse_tui.widgets.table import Row, RowTable

PANELS: Final = (("proof", "Proof"), ("loss", "Loss"), ("checks", "Checks"), ("log", "Log"))
_TICK_SECONDS: Final = 1.0
_NO_CURVE: Final = "The loss curve was not published."


class PanelTabs(Lines):
    """The panels' names, shown where only one panel fits at a time."""

    ALLOW_SELECT = False

    def on_click(self, event: events.Click) -> None:
        """Show the panel whose name was clicked."""
        right = 0
        for number, (name, title) in enumerate(PANELS, start=1):
            right += len(f"{number} {title}   ")
            if event.x < right:
                if isinstance(self.screen, RunScreen):
                    self.screen.action_panel(name)
                return


class LossPanel(Vertical, can_focus=True):
    """The plot and its legend."""


class RunScreen(ConsoleScreen):
    """One run: in progress or ended, mine or published."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(RUN)]

    def __init__(self, run_id: str, *, panel: str = "proof") -> None:
        super().__init__()
        self.run_id = run_id
        self._panel = panel if panel in dict(PANELS) else "proof"
        self._data: RunData | None = None
        self._redrawn_at = 0.0
        self._log_rows: dict[int, Row] = {}

    def compose(self) -> ComposeResult:
        """The title, the two cards, the panels."""
        yield self.top_bar()
        with Vertical(id="body"):
            yield Lines([line((f"Reading run {short_id(self.run_id)}", "muted"))], id="title")
            yield Lines(id="banner", classes="wraps")
            with Horizontal(id="cards"):
                yield SegmentCard("raw")
                yield SegmentCard("protected")
            yield PanelTabs(id="tabs")
            with Vertical(id="panels"):
                with LossPanel(id="loss-panel", classes="panel"):
                    yield Lines((LEGEND,), id="legend")
                    yield LossPlot()
                with ScrollPanel(id="proof-panel", classes="panel"):
                    yield Lines(id="proof")
                with ScrollPanel(id="checks-panel", classes="panel"):
                    yield Lines(id="checks")
                with Vertical(id="log-panel", classes="panel"):
                    yield RowTable(LOG_COLUMNS, id="log", header=False, follow=True)
                    with ScrollPanel(id="facts-panel"):
                        yield Lines(id="facts")
        yield self.key_bar()

    def on_mount(self) -> None:
        """Show the first panel, and keep times current between readings."""
        self.query_one("#facts-panel").display = False
        self.action_panel(self._panel)
        self.set_interval(_TICK_SECONDS, self._redraw_times)

    def on_resize(self) -> None:
        """Lay out again; the plot may have room for more points."""
        self.call_after_refresh(self._laid_out)

    def _laid_out(self) -> None:
        self._show_panel()
        self._redraw()
        if self.in_front:
            self.console.poller.watch(self.interest(), self)

    def top_bar(self) -> TopBar:
        """The top bar with the list below this screen as its tab."""
        below = next(
            (s for s in reversed(self.app.screen_stack) if isinstance(s, ConsoleScreen) and s is not self), None
        )
        return self._bar(below.TAB if below else self.TAB)

    def interest(self) -> RunInterest:
        """This run, with as many points as the plot can show."""
        try:
            points = self.query_one(LossPlot).points
        except NoMatches:
            points = 0
        return RunInterest(self.run_id, points)

    def on_run_read(self, message: RunRead) -> None:
        """Show what was read, if it is this run."""
        if message.data.view.summary.id == self.run_id:
            was_published = self._published
            self._data = message.data
            if self._published != was_published:
                self._show_panel()
            self._redraw()

    def subject(self) -> tuple[str, str] | None:
        """This run."""
        return (self.run_id, self._data.view.summary.label) if self._data else None

    def can_cancel(self) -> bool:
        """True while the run is unfinished."""
        return self._data is not None and not is_final(self._data.view.summary)

    def can_resume(self) -> bool:
        """True if the run has no runner."""
        return self._data is not None and self._data.view.summary.orphaned

    def state(self) -> dict[str, Any]:
        """The current panel."""
        return {"panel": self._panel}

    def action_panel(self, name: str) -> None:
        """Make a panel the current one and focus it."""
        self._panel = name
        self._show_panel()
        target = {"log": "#facts-panel" if self._published else "#log", "loss": "#loss-panel"}.get(
            name, f"#{name}-panel"
        )
        self.query_one(target).focus()
        self.call_after_refresh(self._laid_out)

    def action_zoom(self) -> None:
        """Maximize the current panel, or restore the layout."""
        self.toggle_class("-zoomed")
        self.call_after_refresh(self._laid_out)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Make the focused panel the current one."""
        for panel in event.widget.ancestors_with_self:
            name = (panel.id or "").removesuffix("-panel")
            if name in dict(PANELS) and name != self._panel:
                self._panel = name
                self._show_panel()

    @property
    def _published(self) -> bool:
        return self._data is not None and self._data.view.summary.source == "published"

    def _show_panel(self) -> None:
        for name, title in PANELS:
            panel = self.query_one(f"#{name}-panel")
            panel.set_class(name == self._panel, "-current")
            panel.border_title = (
                ("Published facts" if name == "log" and self._published else title)
                if self.roomy and not self.has_class("-zoomed")
                else ""
            )
        self.query_one(PanelTabs).show(
            [
                tuple(
                    part
                    for number, (name, title) in enumerate(PANELS, start=1)
                    for part in (
                        (f"{number} ", "muted"),
                        (title, "tab" if name == self._panel else "muted"),
                        ("   ", "plain"),
                    )
                )
            ]
        )

    def _redraw_times(self) -> None:
        just_redrawn = time.monotonic() - self._redrawn_at < _TICK_SECONDS / 2
        if self._data and not is_final(self._data.view.summary) and self.in_front and not just_redrawn:
            self._redraw_head(self._data.view)

    def _redraw_head(self, view: RunView) -> None:
        now = self.console.now()
        self._redrawn_at = time.monotonic()
        self.query_one("#title", Lines).show(self._title(view))
        for card in self.query(SegmentCard):
            card.show(view, now)

    def _redraw(self) -> None:
        if self._data is None or not self.is_attached:
            return
        data, view = self._data, self._data.view
        summary = view.summary
        published = summary.source == "published"
        self.query_one(TopBar).place = summary.label
        self._redraw_head(view)
        self.query_one("#banner", Lines).show(self._banner(view))
        self.query_one("#banner").display = bool(self._banner(view))
        self.query_one(LossPlot).show(data.curves, limit=summary.step_budget, absent=_NO_CURVE if published else None)
        self._show_lines("legend", loss_lines(view, self._width("loss")))
        self._show_lines("proof", proof_lines(view))
        self._show_lines("checks", self._checks(view))
        self.query_one("#log").display = not published
        self.query_one("#facts-panel").display = published
        if published:
            self._show_lines("facts", fact_lines(view.row or {}))
        else:
            self._show_log(data)
        self.refresh_keys()

    def _show_log(self, data: RunData) -> None:
        previous = self._log_rows
        self._log_rows = {entry.rowid: previous.get(entry.rowid) or log_row(entry) for entry in data.log}
        warnings = [warning_row(one) for one in data.view.warnings]
        self.query_one("#log", RowTable).show([*self._log_rows.values(), *warnings])

    def _show_lines(self, name: str, lines: list[Line]) -> None:
        self.query_one(f"#{name}", Lines).show(lines)

    def _width(self, name: str) -> int:
        return max(20, self.query_one(f"#{name}-panel").content_size.width)

    def _checks(self, view: RunView) -> list[Line]:
        checks = checks_of(view)
        if not checks:
            word = "published" if view.summary.source == "published" else "recorded"
            return [line((f"No checks were {word}.", "muted"))]
        return check_lines(checks, self._width("checks"))

    def _title(self, view: RunView) -> list[Line]:
        summary = view.summary
        width = self.query_one("#title").content_size.width
        style = state_style("run", summary.state)
        reason = f"  {plain(summary.reason)}" if summary.reason else ""
        published = summary.source == "published"
        state = line((style.text, style.tone), (reason, "muted")) if not published else line(("published", "muted"))
        left = line((plain(summary.label), "strong"), (f"  {short_id(summary.id)}  ", "muted")) + state
        right = line((left_text(seconds_left(view)) or self._took(view), "plain"))
        return [spread(left, right, width), line((" · ".join(_settings(view)), "muted"))]

    def _took(self, view: RunView) -> str:
        seconds = _seconds(view)
        return f"took {duration(seconds)}" if seconds is not None else ""

    def _banner(self, view: RunView) -> list[Line]:
        return [*advice_lines(view), *self._runner_banner(view)]

    def _runner_banner(self, view: RunView) -> list[Line]:
        if not view.summary.orphaned:
            return []
        if self.console.read_only:
            return [line((f"{NO_RUNNER.text}.", NO_RUNNER.tone), ("  This console is read-only.", "muted"))]
        return [
            line((f"{NO_RUNNER.text}.  Press ", NO_RUNNER.tone), (" r ", "key"), (" to resume it.", NO_RUNNER.tone))
        ]


def _seconds(view: RunView) -> float | None:
    return seconds_between(view.summary.started_at, view.summary.finished_at)


def _settings(view: RunView) -> list[str]:
    """The run's main settings in a few words."""
    summary = view.summary
    parts = [summary.provider]
    if summary.gpu_model:
        parts.append(gpu(summary.gpu_model))
    parts.append(model(summary.model))
    parts.append(words(summary.order) if summary.order else words(summary.segments))
    if summary.step_budget:
        parts.append(f"{summary.step_budget:,} steps each")
    if summary.target_sec:
        parts.append(f"{duration(summary.target_sec)} each")
    started = summary.started_at or summary.created_at
    parts.append(day(started) if summary.source == "published" else moment(started))
    return [plain(part) for part in parts]
