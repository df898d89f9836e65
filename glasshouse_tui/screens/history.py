"""History: all rows, mine and published; filtered while typing, sorted by column, paged from the store."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any, ClassVar, Final

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.timer import Timer
from textual.widgets import Input

from engine.errors import GlasshouseError
from engine.store.views import RunSummary
from glasshouse_tui.bindings import HISTORY, bindings_for
from glasshouse_tui.format import DASH, count, day, gpu, model, moment, percent, plain, short_id
from glasshouse_tui.messages import ActionFailed, StoreChanged, WindowRead
from glasshouse_tui.paging import SORTS, SOURCES, Fetch, Query, Window, read
from glasshouse_tui.poller import ChangeInterest, problem_of
from glasshouse_tui.run_metrics import is_final
from glasshouse_tui.screens.base import ConsoleScreen
from glasshouse_tui.state_styles import state_style, verdict_style
from glasshouse_tui.widgets.paint import Line, Lines, line
from glasshouse_tui.widgets.table import Column, Row, RowTable

COLUMNS: Final = (
    Column("label", "LABEL", 12, flex=2),
    Column("created_at", "DATE", 16, drop=4),
    Column("model", "MODEL", 19, flex=2),
    Column("gpu", "GPU", 10, flex=1, drop=5),
    Column("steps", "RAW / PROT.", 15, align="right", drop=6),
    Column("overhead_pct", "OVERHEAD", 9, align="right"),
    Column("slack", "SLACK", 9, align="right", drop=8),
    Column("attestation", "ATTESTED", 10, flex=1, drop=3),
    Column("verdict", "VERDICT", 11),
    Column("id", "ID", 8, flex=1, drop=7),
)
_SOURCE_WORDS: Final = {"all": "all rows", "mine": "mine", "published": "published"}
_ORDERS: Final = {
    "created_at": ("newest first", "oldest first"),
    "label": ("label Z to A", "label A to Z"),
    "model": ("model Z to A", "model A to Z"),
    "overhead_pct": ("highest overhead first", "lowest overhead first"),
}
_DEBOUNCE_SECONDS: Final = 0.15
_REREAD_SECONDS: Final = 1.0
_DESCENDING_FIRST: Final = ("created_at", "overhead_pct")


class FilterInput(Input):
    """The filter field; Escape, Enter and Down return to the rows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,down,enter", "screen.leave_filter", "Rows", show=False),
    ]


class HistoryScreen(ConsoleScreen):
    """A table of all rows, of which only a window is held in memory."""

    TAB = "history"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(HISTORY)]

    def __init__(self) -> None:
        super().__init__()
        self._window = Window()
        self._row_query = Query()
        self._ticket = 0
        self._is_reading = False
        self._restored_row: str | None = None
        self._filter_timer: Timer | None = None
        self._reread_timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """The filter, the position and order, the rows."""
        yield self.top_bar()
        with Vertical(id="body"):
            with Horizontal(id="filter-line"):
                yield FilterInput(placeholder="filter by label, model, GPU or id", id="filter")
                yield Lines(id="listed")
            yield RowTable(COLUMNS, id="rows")
            yield Lines(id="advice", classes="wraps")
        yield self.key_bar()

    def on_mount(self) -> None:
        """Read the first rows of the list as the previous session left it."""
        self.query_one("#rows", RowTable).focus()
        self.restore(self.console.restored("history"))

    def interest(self) -> ChangeInterest:
        """Only notifications of changes; this screen reads its rows itself."""
        return ChangeInterest()

    def on_store_changed(self, _message: StoreChanged) -> None:
        """Reread the rows held, at most once a second."""
        if self._reread_timer is None:
            self._reread_timer = self.set_timer(_REREAD_SECONDS, self._reread)

    def _reread(self) -> None:
        self._reread_timer = None
        if self.in_front:
            self._fetch("reload")

    def on_input_changed(self, message: Input.Changed) -> None:
        """Apply the filter once typing pauses."""
        message.stop()
        if self._filter_timer is not None:
            self._filter_timer.stop()
        self._filter_timer = self.set_timer(_DEBOUNCE_SECONDS, self._filter)

    def _filter(self) -> None:
        self._show_query(replace(self._row_query, text=self.query_one("#filter", Input).value.strip()))

    def on_row_table_moved(self, message: RowTable.Moved) -> None:
        """Read ahead of the cursor."""
        if fetch := self._window.next_fetch(message.table.cursor):
            self._fetch(fetch)
        self._show_listed()

    def on_row_table_edge_reached(self, message: RowTable.EdgeReached) -> None:
        """Go to the first or last of all rows, even if it is not held."""
        if message.whole and (self._window.more_below if message.step > 0 else self._window.more_above):
            self._fetch("last" if message.step > 0 else "first", force=True)

    def on_row_table_opened(self, _message: RowTable.Opened) -> None:
        """Open the row that was clicked twice."""
        self.action_open()

    def on_row_table_header_clicked(self, message: RowTable.HeaderClicked) -> None:
        """Sort by the column, or reverse the order if it is the sort column already."""
        if message.column == self._row_query.sort:
            self.action_reverse_sort()
        elif message.column in SORTS:
            self._sort_by(SORTS.index(message.column))

    def action_open(self) -> None:
        """Open the row under the cursor."""
        if subject := self.subject():
            self.console.open_run(subject[0])

    def action_filter(self) -> None:
        """Focus the filter."""
        self.query_one("#filter", Input).focus()

    def action_leave_filter(self) -> None:
        """Focus the rows."""
        self.query_one("#rows", RowTable).focus()

    def action_next_source(self) -> None:
        """Switch between all rows, mine, and the published ones."""
        names = list(SOURCES)
        following = names[(names.index(self._row_query.source) + 1) % len(names)]
        self._show_query(replace(self._row_query, source=following))

    def action_next_sort(self) -> None:
        """Sort by the next sortable column."""
        self._sort_by((SORTS.index(self._row_query.sort) + 1) % len(SORTS))

    def action_reverse_sort(self) -> None:
        """Reverse the sort order."""
        self._show_query(replace(self._row_query, descending=not self._row_query.descending))

    def subject(self) -> tuple[str, str] | None:
        """The row under the cursor."""
        key = self.query_one("#rows", RowTable).cursor_key
        run = next((row for row in self._window.rows if row.id == key), None)
        return (run.id, run.label) if run else None

    def state(self) -> dict[str, Any]:
        """Filter, source, sort and the selected row."""
        query = self._row_query
        return {
            "text": query.text,
            "source": query.source,
            "sort": query.sort,
            "descending": query.descending,
            "row": self.query_one("#rows", RowTable).cursor_key,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the list as the previous session left it."""
        text, source, sort = state.get("text"), state.get("source"), state.get("sort")
        query = Query(
            text=text if isinstance(text, str) else "",
            source=source if source in SOURCES else "all",
            sort=sort if sort in SORTS else "created_at",
            descending=state.get("descending") is not False,
        )
        self._restored_row = state.get("row") if isinstance(state.get("row"), str) else None
        field = self.query_one("#filter", Input)
        with field.prevent(Input.Changed):
            field.value = query.text
        self._row_query = query
        self._fetch("first", force=True)

    def _sort_by(self, index: int) -> None:
        sort = SORTS[index]
        self._show_query(replace(self._row_query, sort=sort, descending=sort in _DESCENDING_FIRST))

    def _show_query(self, query: Query) -> None:
        if query != self._row_query:
            self._row_query = query
            self._fetch("first", force=True)

    def _fetch(self, fetch: Fetch, *, force: bool = False) -> None:
        if self._is_reading and not force:
            return
        self._is_reading = True
        self._ticket += 1
        self._read(self._ticket, self._row_query, fetch, self._window)

    @work(thread=True, exclusive=True, group="history")
    def _read(self, ticket: int, query: Query, fetch: Fetch, window: Window) -> None:
        held = () if fetch == "first" else window.rows
        try:
            result = read(self.console.home, query, fetch, held, window.first)
        except (GlasshouseError, OSError, sqlite3.Error) as error:
            self.post_message(ActionFailed(problem_of(error)))
            return
        self.post_message(WindowRead(ticket, result))

    def on_action_failed(self, _message: ActionFailed) -> None:
        """Allow the next read; the app reports the error."""
        self._is_reading = False

    def on_window_read(self, message: WindowRead) -> None:
        """Merge the rows into the window, unless a newer read was started."""
        if message.ticket != self._ticket:
            return
        self._is_reading = False
        result = message.result
        self._window = self._window.merge(result)
        rows = self._window.rows
        table = self.query_one("#rows", RowTable)
        cursor = self._restored_row
        if cursor not in {row.id for row in rows}:
            cursor = rows[0].id if result.fetch == "first" and rows else None
            cursor = rows[-1].id if result.fetch == "last" and rows else cursor
        self._restored_row = None
        table.show([history_row(row) for row in rows], cursor=cursor)
        table.show_sort(self._row_query.sort, descending=self._row_query.descending)
        self._show_listed()
        self.refresh_keys()

    def _show_listed(self) -> None:
        window, table = self._window, self.query_one("#rows", RowTable)
        query = self._row_query
        position = line((f"{window.first + table.cursor + 1:,}", "strong"), (f" of {window.total:,}", "muted"))
        if not window.total:
            position = line(("no matching rows" if query.text else "no rows", "muted"))
        order = _ORDERS[query.sort][not query.descending]
        self.query_one("#listed", Lines).show([position, line((f"{_SOURCE_WORDS[query.source]}, {order}", "muted"))])
        advice = self._advice()
        self.query_one("#advice", Lines).display = bool(advice)
        self.query_one("#advice", Lines).show(advice)

    def _advice(self) -> list[Line]:
        """Why the run under the cursor failed, and what to do about it."""
        key = self.query_one("#rows", RowTable).cursor_key
        run = next((row for row in self._window.rows if row.id == key), None)
        if run is None or run.error is None or run.state == "cancelled":
            return []
        return [line((plain(run.error.text), "bad"), (f"  {plain(run.error.hint)}", "plain"))]


def history_row(run: RunSummary) -> Row:
    """One run as a row of History; fields that were not published are a dash."""
    published = run.source == "published"
    attested = state_style("attestation", run.attestation)
    return Row(
        run.id,
        {
            "label": line((plain(run.label, 80), "strong")),
            "created_at": line((day(run.created_at) if published else moment(run.created_at), "muted")),
            "model": line(model(run.model)),
            "gpu": line(gpu(run.gpu_model)),
            "steps": line(f"{count(run.raw_steps or None)} / {count(run.protected_steps or None)}"),
            "overhead_pct": line(percent(run.overhead_pct) if is_final(run) else DASH),
            "slack": line((DASH if run.timing_slack_pct is None else f"±{run.timing_slack_pct:.2f} %", "muted")),
            "attestation": line((attested.text, attested.tone)),
            "verdict": _verdict(run),
            "id": line((short_id(run.id), "muted")),
        },
    )


def _verdict(run: RunSummary) -> tuple[tuple[str, str], ...]:
    if run.source == "published":
        return line(("◇ published", "muted"))
    if run.state != "finished":
        style = state_style("run", run.state)
        return line(("! no runner", "warn")) if run.orphaned else line((style.text, style.tone))
    style = verdict_style(run.clean)
    return line((style.text, style.tone))
