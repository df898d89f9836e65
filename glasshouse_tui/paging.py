"""A window over a long sorted list: what is held, what lies beyond, and which rows to ask for next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from engine.store.listing import Sort
    from engine.store.views import RunSummary, Source

PAGE: Final = 100
MOST: Final = 3 * PAGE
NEAR: Final = 30

Where = Literal["fresh", "last", "above", "below", "again"]

SORTS: Final[tuple[Sort, ...]] = ("created_at", "label", "model", "overhead_pct")
SOURCES: Final[dict[str, tuple[Source, ...]]] = {
    "all": ("mine", "published"),
    "mine": ("mine",),
    "published": ("published",),
}


@dataclass(frozen=True)
class Question:
    """What History lists: a filter text, whose rows, sorted by what and which way."""

    text: str = ""
    source: str = "all"
    sort: Sort = "created_at"
    descending: bool = True


@dataclass(frozen=True)
class Answer:
    """Rows read for a question. `total` counts all that match; `first` is the place of the first row among them."""

    question: Question
    where: Where
    rows: tuple[RunSummary, ...]
    total: int
    first: int


@dataclass(frozen=True)
class Window:
    """The rows held, their place among `total`; never more than `MOST` rows."""

    question: Question = field(default_factory=Question)
    rows: tuple[RunSummary, ...] = ()
    first: int = 0
    total: int = 0

    @property
    def more_above(self) -> bool:
        """True when rows lie before the first held."""
        return self.first > 0

    @property
    def more_below(self) -> bool:
        """True when rows lie behind the last held."""
        return self.first + len(self.rows) < self.total

    def wants(self, cursor: int) -> Where | None:
        """What to read next with the cursor at that place of the held rows; None while there is enough around it."""
        if self.more_below and cursor >= len(self.rows) - NEAR:
            return "below"
        if self.more_above and cursor < NEAR:
            return "above"
        return None

    def take(self, answer: Answer) -> Window:
        """The window with an answer in it; one for another question, or that no longer fits, changes nothing."""
        if answer.where in ("fresh", "last", "again"):
            return Window(answer.question, answer.rows, answer.first, answer.total)
        if answer.question != self.question:
            return self
        whole_page = len(answer.rows) == PAGE
        if answer.where == "below":
            rows = (self.rows + answer.rows)[-MOST:]
            end = self.first + len(self.rows) + len(answer.rows)
            total = max(answer.total, end) if whole_page else end
            return replace(self, rows=rows, first=end - len(rows), total=total)
        rows = (answer.rows + self.rows)[:MOST]
        first = max(1, self.first - len(answer.rows)) if whole_page else 0
        return replace(self, rows=rows, first=first, total=max(answer.total, first + len(rows)))


def read(home: Path, question: Question, where: Where, held: Sequence[RunSummary], first: int) -> Answer:
    """Answer from the store, in the calling thread. `held` are the rows held now, `first` the place of the first.

    `again` reads the same stretch anew. Raises `GlasshouseError`.
    """
    from engine.store.reader import Reader

    sources = SOURCES[question.source]
    with Reader(home) as reader:
        total = reader.count(sources, question.text)

        def page(
            limit: int, *, before: str | None = None, above: str | None = None, offset: int = 0
        ) -> tuple[RunSummary, ...]:
            return tuple(
                reader.runs(
                    sources, limit, question.text, before=before, above=above, offset=offset, sort=question.sort,
                    descending=question.descending,
                )
            )  # fmt: skip

        if where == "below" and held:
            return Answer(question, where, page(PAGE, before=held[-1].id), total, first + len(held))
        if where == "above" and held:
            return Answer(question, where, page(PAGE, above=held[0].id), total, first)
        if where == "last" and total > PAGE:
            return Answer(question, where, page(PAGE, offset=total - PAGE), total, total - PAGE)
        if where == "again" and held and first:
            top = page(1, above=held[0].id)
            rows = page(len(held), before=top[0].id) if top else page(len(held))
            return Answer(question, where, rows, total, first if top else 0)
        return Answer(question, "fresh" if where == "last" else where, page(max(PAGE, len(held))), total, 0)
