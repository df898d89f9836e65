"""History: every row, mine and published; filtered as one types, sorted by column, paged from the store."""

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
from glasshouse_tui.messages import Refused, StoreChanged, WindowRead
from glasshouse_tui.paging import SORTS, SOURCES, Question, Where, Window, read
from glasshouse_tui.poller import ChangeInterest, problem_of
from glasshouse_tui.run_metrics import is_final
from glasshouse_tui.screens.base import ConsoleScreen
from glasshouse_tui.state_styles import clean_look, look
from glasshouse_tui.widgets.paint import Lines, line
from glasshouse_tui.widgets.table import Column, Row, RowTable

COLUMNS: Final = (
    Column("label", "LABEL", 12, flex=2),
    Column("created_at", "DATE", 16, drop=4),
    Column("model", "MODEL", 19, flex=2),
    Column("gpu", "GPU", 10, flex=1, drop=5),
    Column("steps", "RAW / PROT.", 15, align="right", drop=6),
    Column("overhead_pct", "OVERHEAD", 9, align="right"),
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
_FALLING_FIRST: Final = ("created_at", "overhead_pct")


class FilterInput(Input):
    """The filter's line; Escape, Enter and Down go back to the rows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,down,enter", "screen.leave_filter", "Rows", show=False),
    ]


class HistoryScreen(ConsoleScreen):
    """A table over as many rows as there are; only a window of them is held."""

    TAB = "history"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for(HISTORY)]

    def __init__(self) -> None:
        super().__init__()
        self._window = Window()
        self._question = Question()
        self._ticket = 0
        self._reading = False
        self._wanted: str | None = None
        self._typing: Timer | None = None
        self._stale: Timer | None = None

    def compose(self) -> ComposeResult:
        """The filter, what is listed, the rows."""
        yield self.top_bar()
        with Vertical(id="body"):
            with Horizontal(id="filter-line"):
                yield FilterInput(placeholder="filter: words of label, model, GPU, provider or id", id="filter")
                yield Lines(id="listed")
            yield RowTable(COLUMNS, id="rows")
        yield self.key_bar()

    def on_mount(self) -> None:
        """Read the first rows of what was listed before."""
        self.query_one("#rows", RowTable).focus()
        self.restore(self.console.restored("history"))

    def interest(self) -> ChangeInterest:
        """Only that something changed; the rows are asked for from here."""
        return ChangeInterest()

    def on_store_changed(self, _message: StoreChanged) -> None:
        """Read the same stretch again, at most once a second."""
        if self._stale is None:
            self._stale = self.set_timer(_REREAD_SECONDS, self._reread)

    def _reread(self) -> None:
        self._stale = None
        if self.in_front:
            self._ask("again")

    def on_input_changed(self, message: Input.Changed) -> None:
        """Ask once the typing pauses."""
        message.stop()
        if self._typing is not None:
            self._typing.stop()
        self._typing = self.set_timer(_DEBOUNCE_SECONDS, self._filter)

    def _filter(self) -> None:
        self._ask_for(replace(self._question, text=self.query_one("#filter", Input).value.strip()))

    def on_row_table_moved(self, message: RowTable.Moved) -> None:
        """Read ahead of the cursor."""
        if where := self._window.wants(message.table.cursor):
            self._ask(where)
        self._show_listed()

    def on_row_table_edge_reached(self, message: RowTable.EdgeReached) -> None:
        """Go to the very first or last row, whatever is held."""
        if message.whole and (self._window.more_below if message.step > 0 else self._window.more_above):
            self._ask("last" if message.step > 0 else "fresh", force=True)

    def on_row_table_opened(self, _message: RowTable.Opened) -> None:
        """A second click opens."""
        self.action_open()

    def on_row_table_header_clicked(self, message: RowTable.HeaderClicked) -> None:
        """Sort by the column, or turn its order around."""
        if message.column == self._question.sort:
            self.action_reverse_sort()
        elif message.column in SORTS:
            self._sort_by(SORTS.index(message.column))

    def action_open(self) -> None:
        """Open the row under the cursor."""
        if subject := self.subject():
            self.console.open_run(subject[0])

    def action_filter(self) -> None:
        """Go to the filter."""
        self.query_one("#filter", Input).focus()

    def action_leave_filter(self) -> None:
        """Go back to the rows."""
        self.query_one("#rows", RowTable).focus()

    def action_next_source(self) -> None:
        """All rows, mine, or the published ones."""
        names = list(SOURCES)
        following = names[(names.index(self._question.source) + 1) % len(names)]
        self._ask_for(replace(self._question, source=following))

    def action_next_sort(self) -> None:
        """Sort by the next column that can be sorted by."""
        self._sort_by((SORTS.index(self._question.sort) + 1) % len(SORTS))

    def action_reverse_sort(self) -> None:
        """Turn the order around."""
        self._ask_for(replace(self._question, descending=not self._question.descending))

    def subject(self) -> tuple[str, str] | None:
        """The row under the cursor."""
        key = self.query_one("#rows", RowTable).cursor_key
        found = next((row for row in self._window.rows if row.id == key), None)
        return (found.id, found.label) if found else None

    def state(self) -> dict[str, Any]:
        """Filter, source, sort and the selected row."""
        asked = self._question
        return {
            "text": asked.text,
            "source": asked.source,
            "sort": asked.sort,
            "descending": asked.descending,
            "row": self.query_one("#rows", RowTable).cursor_key,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """List what the session before listed."""
        text, source, sort = state.get("text"), state.get("source"), state.get("sort")
        asked = Question(
            text=text if isinstance(text, str) else "",
            source=source if source in SOURCES else "all",
            sort=sort if sort in SORTS else "created_at",
            descending=state.get("descending") is not False,
        )
        self._wanted = state.get("row") if isinstance(state.get("row"), str) else None
        field = self.query_one("#filter", Input)
        with field.prevent(Input.Changed):
            field.value = asked.text
        self._question = asked
        self._ask("fresh", force=True)

    def _sort_by(self, place: int) -> None:
        sort = SORTS[place]
        self._ask_for(replace(self._question, sort=sort, descending=sort in _FALLING_FIRST))

    def _ask_for(self, question: Question) -> None:
        if question != self._question:
            self._question = question
            self._ask("fresh", force=True)

    def _ask(self, where: Where, *, force: bool = False) -> None:
        if self._reading and not force:
            return
        self._reading = True
        self._ticket += 1
        self._read(self._ticket, self._question, where, self._window)

    @work(thread=True, exclusive=True, group="history")
    def _read(self, ticket: int, question: Question, where: Where, window: Window) -> None:
        held = () if where == "fresh" else window.rows
        try:
            answer = read(self.console.home, question, where, held, window.first)
        except (GlasshouseError, OSError, sqlite3.Error) as error:
            self.post_message(Refused(problem_of(error)))
            return
        self.post_message(WindowRead(ticket, answer))

    def on_refused(self, _message: Refused) -> None:
        """The reading failed; the app says why."""
        self._reading = False

    def on_window_read(self, message: WindowRead) -> None:
        """Put an answer into the window, unless a newer question was asked."""
        if message.ticket != self._ticket:
            return
        self._reading = False
        answer = message.answer
        self._window = self._window.take(answer)
        rows = self._window.rows
        table = self.query_one("#rows", RowTable)
        cursor = self._wanted
        if cursor not in {row.id for row in rows}:
            cursor = rows[0].id if answer.where == "fresh" and rows else None
            cursor = rows[-1].id if answer.where == "last" and rows else cursor
        self._wanted = None
        table.show([history_row(row) for row in rows], cursor=cursor)
        table.show_sort(self._question.sort, descending=self._question.descending)
        self._show_listed()
        self.refresh_keys()

    def _show_listed(self) -> None:
        window, table = self._window, self.query_one("#rows", RowTable)
        asked = self._question
        first = line((f"{window.first + table.cursor + 1:,}", "strong"), (f" of {window.total:,}", "muted"))
        if not window.total:
            first = line(("no row matches" if asked.text else "no rows", "muted"))
        order = _ORDERS[asked.sort][not asked.descending]
        self.query_one("#listed", Lines).show([first, line((f"{_SOURCE_WORDS[asked.source]}, {order}", "muted"))])


def history_row(run: RunSummary) -> Row:
    """One row of History; what was not published is a dash."""
    published = run.source == "published"
    attested = look("attestation", run.attestation)
    return Row(
        run.id,
        {
            "label": line((plain(run.label, 80), "strong")),
            "created_at": line((day(run.created_at) if published else moment(run.created_at), "muted")),
            "model": line(model(run.model)),
            "gpu": line(gpu(run.gpu_model)),
            "steps": line(f"{count(run.raw_steps or None)} / {count(run.protected_steps or None)}"),
            "overhead_pct": line(percent(run.overhead_pct) if is_final(run) else DASH),
            "attestation": line((attested.text, attested.tone)),
            "verdict": _verdict(run),
            "id": line((short_id(run.id), "muted")),
        },
    )


def _verdict(run: RunSummary) -> tuple[tuple[str, str], ...]:
    if run.source == "published":
        return line(("◇ published", "muted"))
    if run.state != "finished":
        shown = look("run", run.state)
        return line(("! unattended", "warn")) if run.orphaned else line((shown.text, shown.tone))
    shown = clean_look(run.clean)
    return line((shown.text, shown.tone))
