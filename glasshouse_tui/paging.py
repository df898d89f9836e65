"""A window over a long sorted list: the rows held in memory, and which rows to read next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from engine.store.listing import Sort
    from engine.store.views import RunSummary, Source

PAGE: Final = 100
MAX_ROWS: Final = 3 * PAGE
MARGIN: Final = 30

Fetch = Literal["first", "last", "above", "below", "reload"]

SORTS: Final[tuple[Sort, ...]] = ("created_at", "label", "model", "overhead_pct")
SOURCES: Final[dict[str, tuple[Source, ...]]] = {
    "all": ("mine", "published"),
    "mine": ("mine",),
    "published": ("published",),
}


@dataclass(frozen=True)
class Query:
    """What History lists: filter text, source of the rows, sort column and direction."""

    text: str = ""
    source: str = "all"
    sort: Sort = "created_at"
    descending: bool = True


@dataclass(frozen=True)
class QueryResult:
    """Rows read for a query. `total` counts all matching rows; `first` is the index of `rows[0]` among them."""

    query: Query
    fetch: Fetch
    rows: tuple[RunSummary, ...]
    total: int
    first: int


@dataclass(frozen=True)
class Window:
    """The rows held, at most `MAX_ROWS`, and the index of the first among all `total` matching rows."""

    query: Query = field(default_factory=Query)
    rows: tuple[RunSummary, ...] = ()
    first: int = 0
    total: int = 0

    @property
    def more_above(self) -> bool:
        """True when there are rows before the first one held."""
        return self.first > 0

    @property
    def more_below(self) -> bool:
        """True when there are rows after the last one held."""
        return self.first + len(self.rows) < self.total

    def next_fetch(self, cursor: int) -> Fetch | None:
        """What to read next when the cursor is at this index of the held rows; None if enough rows surround it."""
        if self.more_below and cursor >= len(self.rows) - MARGIN:
            return "below"
        if self.more_above and cursor < MARGIN:
            return "above"
        return None

    def merge(self, result: QueryResult) -> Window:
        """The window with a result merged in; adjacent rows of another query are ignored."""
        if result.fetch in ("first", "last", "reload"):
            return Window(result.query, result.rows, result.first, result.total)
        if result.query != self.query:
            return self
        whole_page = len(result.rows) == PAGE
        if result.fetch == "below":
            rows = (self.rows + result.rows)[-MAX_ROWS:]
            end = self.first + len(self.rows) + len(result.rows)
            total = max(result.total, end) if whole_page else end
            return replace(self, rows=rows, first=end - len(rows), total=total)
        rows = (result.rows + self.rows)[:MAX_ROWS]
        first = max(1, self.first - len(result.rows)) if whole_page else 0
        return replace(self, rows=rows, first=first, total=max(result.total, first + len(rows)))


def read(home: Path, query: Query, fetch: Fetch, held: Sequence[RunSummary], first: int) -> QueryResult:
    """Read from the store, in the calling thread. `held` are the rows held now, `first` the index of `held[0]`.

    `reload` reads the same rows again. Raises `GlasshouseError`.
    """
    from engine.store.reader import Reader

    sources = SOURCES[query.source]
    with Reader(home) as reader:
        total = reader.count(sources, query.text)

        def page(
            limit: int, *, before: str | None = None, above: str | None = None, offset: int = 0
        ) -> tuple[RunSummary, ...]:
            return tuple(
                reader.runs(
                    sources,
                    limit,
                    query.text,
                    before=before,
                    above=above,
                    offset=offset,
                    sort=query.sort,
                    descending=query.descending,
                )
            )

        if fetch == "below" and held:
            return QueryResult(query, fetch, page(PAGE, before=held[-1].id), total, first + len(held))
        if fetch == "above" and held:
            return QueryResult(query, fetch, page(PAGE, above=held[0].id), total, first)
        if fetch == "last" and total > PAGE:
            return QueryResult(query, fetch, page(PAGE, offset=total - PAGE), total, total - PAGE)
        if fetch == "reload" and held and first:
            top = page(1, above=held[0].id)
            rows = page(len(held), before=top[0].id) if top else page(len(held))
            return QueryResult(query, fetch, rows, total, first if top else 0)
        return QueryResult(query, "first" if fetch == "last" else fetch, page(max(PAGE, len(held))), total, 0)
