"""Lists of runs: every sort, both directions, filters; pages joined together are the whole list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.errors import UsageError
from engine.plan import Model, Plan
from engine.store import listing
from engine.store.listing import Sort
from engine.store.reader import Reader
from engine.store.views import RunSummary, Source
from engine.store.writer import Writer

EVERY: tuple[Source, ...] = ("mine", "published")
OVERHEADS = (0.5, None, -0.45, 12.0, None, 0.5)


@pytest.fixture
def history(home: Path, plan: Plan) -> Iterator[Reader]:
    """Forty runs of three models and seven labels; two share each time of creation."""
    ticks = iter(range(100_000))
    with Writer(home, clock=lambda: f"2026-11-01T00:00:{next(ticks) // 8 % 60:02}.000Z") as writer:
        for number in range(40):
            run_id = f"{number * 7919 % 1000:03}-run"
            name = ("tiny", "Qwen/Qwen2.5-7B-Instruct", "alpha")[number % 3]
            label = f"Label {number % 7}" if number % 2 else f"label {number % 7}"
            model = Model(source="tiny", name=name)
            writer.create_run(run_id, msgspec.structs.replace(plan, label=label, model=model))
            if number % 4:
                row = {"overheadPct": OVERHEADS[number % len(OVERHEADS)], "clean": True}
                writer.finish(run_id, row, (), "failed" if number % 9 == 0 else "finished")
    with Reader(home) as reader:
        yield reader


def sorted_by(runs: list[RunSummary], sort: Sort, *, descending: bool) -> list[RunSummary]:
    """The expected listing: names compared without case, unknown overheads last, ties by id."""

    def key(run: RunSummary) -> tuple[object, str]:
        if sort == "overhead_pct":
            unknown = -1e300 if descending else 1e300
            return (unknown if run.overhead_pct is None else run.overhead_pct), run.id
        value = getattr(run, sort)
        return (value if sort == "created_at" else value.lower()), run.id

    return sorted(runs, key=key, reverse=descending)


@pytest.fixture(params=[0, 1_000_000], ids=["scanning the sorted index", "sorting a few"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "FEW_RUNS", request.param)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", ["created_at", "label", "overhead_pct", "model"])
def test_every_order_pages_down_and_up_without_loss_or_repetition(
    history: Reader, sort: Sort, descending: bool
) -> None:
    whole = history.runs(EVERY, sort=sort, descending=descending)
    assert len(whole) == 57
    assert whole == sorted_by(whole, sort, descending=descending)
    down = history.runs(EVERY, 7, sort=sort, descending=descending)
    while page := history.runs(EVERY, 7, sort=sort, descending=descending, before=down[-1].id):
        down += page
    assert down == whole
    up = [whole[-1]]
    while page := history.runs(EVERY, 5, sort=sort, descending=descending, above=up[0].id):
        up = page + up
    assert up == whole
    assert history.runs(EVERY, 3, sort=sort, descending=descending, offset=50) == whole[50:53]


def test_newest_come_first_and_other_columns_ascend_by_default(history: Reader) -> None:
    newest = history.runs(limit=5)
    assert newest == history.runs(limit=5, sort="created_at", descending=True)
    assert history.runs(sort="label") == history.runs(sort="label", descending=False)
    assert [run.overhead_pct for run in history.runs(sort="overhead_pct")][-1] is None
    assert [run.overhead_pct for run in history.runs(sort="overhead_pct", descending=True)][-1] is None


@pytest.mark.usefixtures("few")
def test_sources_are_kept_apart(history: Reader) -> None:
    assert {run.source for run in history.runs()} == {"mine"}
    assert {run.source for run in history.runs(("published",))} == {"published"}
    assert history.runs(()) == []
    assert [history.count(), history.count(("published",)), history.count(EVERY)] == [40, 17, 57]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "text", ["label 3", "LABEL", "7b label", "rtx a4000", "4090 15m", "local", "019-run", "100%", "_", "nothing"]
)
def test_the_filter_needs_every_word_in_any_column_and_case(history: Reader, text: str) -> None:
    def matches(run: RunSummary) -> bool:
        parts = (run.label, run.id, run.model, run.gpu_model or "", run.provider)
        return all(any(word in part.lower() for part in parts) for word in text.lower().split())

    matching = history.runs(EVERY, text=text)
    assert matching == [run for run in history.runs(EVERY) if matches(run)]
    assert history.count(EVERY, text) == len(matching)
    assert history.runs(EVERY, text=text, sort="label") == sorted_by(matching, "label", descending=False)


def test_filtered_lists_are_paged(history: Reader) -> None:
    whole = history.runs(text="label 3")
    assert len(whole) > 4
    assert history.runs(text="label 3", limit=2, before=whole[1].id) == whole[2:4]


@pytest.mark.usefixtures("few")
def test_states_filter_and_their_count(history: Reader) -> None:
    failed = history.runs(states=("failed",))
    assert failed
    assert {run.state for run in failed} == {"failed"}
    assert history.count(states=("failed",)) == len(failed)
    assert history.count(states=("failed", "queued")) == len(failed) + 10
    assert history.count(EVERY, "label", ("failed",)) == len(failed)


def test_unfinished_are_all_that_have_not_ended(history: Reader) -> None:
    assert history.unfinished() == history.runs(states=("queued",))
    assert len(history.unfinished()) == 10


def test_unknown_cursor_and_unknown_column_are_usage_errors(history: Reader) -> None:
    with pytest.raises(UsageError) as caught:
        history.runs(before="gone")
    assert caught.value.code == "run_unknown"
    with pytest.raises(UsageError):
        history.runs(sort="id; DROP TABLE runs")  # type: ignore[arg-type]
