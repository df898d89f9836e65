"""A run's two logs: stored exactly once, read back byte for byte, invalid progress refused, small on disk."""

from __future__ import annotations

import base64
import math
import random
import sqlite3
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StoreError, WireError
from engine.plan import Plan
from engine.store import chains
from engine.store.home import database_path
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.wire import GENESIS, ChainReader, ChainWriter, Event, to_line

Noisy = Callable[[str, int, int], dict[str, Any]]
Body = Callable[[str, int, Sequence[float], Sequence[int]], dict[str, Any]]
RUN = "run-a"
PROGRESS = "train.progress"


@pytest.fixture
def ready(writer: Writer, plan: Plan) -> Writer:
    writer.create_run(RUN, plan)
    return writer


def pod_log(noisy: Noisy, sizes: Sequence[int] = (10, 1, 333, 700, 2, 0, 954, 1000, 1200)) -> list[Event]:
    """A log of two segments whose progress events end before, at and after the edges of the stored chunks."""
    chain = ChainWriter(RUN)
    events = [chain.append("launch.accepted", {"bundle": "a" * 64, "third": 1 / 3})]
    for kind in ("raw", "protected"):
        events.append(chain.append("train.started", {"segment": kind, "settling": 20}))
        first = 0
        for size in sizes:
            events.append(chain.append(PROGRESS, noisy(kind, first, size)))
            first += size
            if size == 700:
                events.append(chain.append("log", {"text": "Grüße \u2028 \U0001f512"}))
        events.append(chain.append("train.finished", {"segment": kind, "steps": first}))
    return events


def lines(events: Sequence[Event]) -> list[bytes]:
    return [to_line(event) for event in events]


def test_the_log_is_read_back_byte_for_byte_and_its_chain_verifies(reader: Reader, ready: Writer, noisy: Noisy) -> None:
    events = pod_log(noisy)
    assert ready.ingest(RUN, events, 12_345) == len(events)
    stored = reader.events(RUN, "pod")
    assert lines(stored) == lines(events)
    chain = ChainReader(RUN)
    for line in lines(stored):
        chain.feed(line)
    assert (chain.head, chain.next_seq) == (events[-1].hash, len(events))
    assert reader.tail(RUN) == ready.tail(RUN) == (12_345, events[-1].hash, len(events))


def test_a_log_that_ends_in_progress_is_read_back(reader: Reader, ready: Writer, noisy: Noisy) -> None:
    events = pod_log(noisy)[:5]
    ready.ingest(RUN, events, 1)
    assert lines(reader.events(RUN, "pod")) == lines(events)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_batches_of_any_size_store_the_same(reader: Reader, ready: Writer, noisy: Noisy, size: int) -> None:
    events = pod_log(noisy)
    for start in range(0, len(events), size):
        ready.ingest(RUN, events[start : start + size], start)
    assert lines(reader.events(RUN, "pod")) == lines(events)
    raw = reader.run(RUN).segments[0]
    assert raw.steps == 4200
    assert raw.elapsed_sec == pytest.approx(sum(reader.series(RUN, "raw").nanos) / 1e9)


def test_replayed_and_overlapping_events_are_stored_once(reader: Reader, ready: Writer, noisy: Noisy) -> None:
    events = pod_log(noisy)
    assert ready.ingest(RUN, events[:9], 900) == 9
    assert ready.ingest(RUN, events[:9], 900) == 0
    assert ready.ingest(RUN, events[4:], 2_000) == len(events) - 9
    assert ready.ingest(RUN, events[:3], 300) == 0
    assert lines(reader.events(RUN, "pod")) == lines(events)
    assert reader.tail(RUN).offset == 2_000
    assert [part.steps for part in reader.run(RUN).segments] == [4200, 4200]
    assert [line.seq for line in reader.log(RUN)] == [e.seq for e in events if e.event != PROGRESS]


def test_a_gap_is_refused_and_nothing_is_stored(reader: Reader, ready: Writer, noisy: Noisy) -> None:
    events = pod_log(noisy)
    ready.ingest(RUN, events[:3], 30)
    with pytest.raises(WireError) as caught:
        ready.ingest(RUN, [events[3], events[5]], 50)
    assert caught.value.code == "log_chain_broken"
    assert reader.tail(RUN) == (30, events[2].hash, 3)
    assert lines(reader.events(RUN, "pod")) == lines(events[:3])


def test_event_of_another_history_is_refused(ready: Writer, noisy: Noisy) -> None:
    events = pod_log(noisy)
    ready.ingest(RUN, events[:3], 30)
    forged = ChainWriter(RUN, head="f" * 64, next_seq=3).append("log", {"text": "trust me"})
    with pytest.raises(WireError) as caught:
        ready.ingest(RUN, [forged], 40)
    assert caught.value.code == "log_chain_broken"


def test_empty_log_has_an_empty_tail(reader: Reader, ready: Writer) -> None:
    assert reader.tail(RUN) == (0, GENESIS, 0)
    assert reader.events(RUN, "pod") == []


def test_offset_moves_without_events(reader: Reader, ready: Writer) -> None:
    assert ready.ingest(RUN, [], 64) == 0
    assert reader.tail(RUN) == (64, GENESIS, 0)


def test_the_two_chains_of_a_run_are_separate(reader: Reader, ready: Writer, noisy: Noisy) -> None:
    pod, ours = pod_log(noisy), ChainWriter(RUN)
    mine = [ours.append("package.sealed", {"n": number}) for number in range(3)]
    ready.append_events(RUN, "runner", mine[:2])
    ready.ingest(RUN, pod, 10)
    ready.append_events(RUN, "runner", mine)
    assert lines(reader.events(RUN, "runner")) == lines(mine)
    assert lines(reader.events(RUN, "pod")) == lines(pod)
    assert reader.tail(RUN, "runner") == (0, mine[-1].hash, 3)


def test_log_lines_come_in_order_of_arrival_and_by_page(reader: Reader, ready: Writer, noisy: Noisy) -> None:
    ours = ChainWriter(RUN)
    ready.append_events(RUN, "runner", [ours.append("package.sealed", {"n": 1})])
    ready.ingest(RUN, pod_log(noisy), 10)
    ready.append_events(RUN, "runner", [ours.append("release.granted", {"n": 2})])
    whole = reader.log(RUN)
    assert [line.rowid for line in whole] == sorted(line.rowid for line in whole)
    assert (whole[0].event, whole[-1].event) == ("package.sealed", "release.granted")
    assert PROGRESS not in {line.event for line in whole}
    assert reader.log(RUN, after=whole[2].rowid, limit=2) == whole[3:5]
    assert reader.log(RUN, last=3) == whole[-3:]


def test_series_and_counters_match_the_sent_steps(reader: Reader, ready: Writer, body: Body) -> None:
    losses = [struct.unpack("<f", struct.pack("<f", 3.0 / (1 + step)))[0] for step in range(1500)]
    nanos = [10_000_000 + step for step in range(1500)]
    chain = ChainWriter(RUN)
    ready.ingest(RUN, [chain.append(PROGRESS, body("protected", 0, losses[:900], nanos[:900]))], 1)
    ready.ingest(RUN, [chain.append(PROGRESS, body("protected", 900, losses[900:], nanos[900:]))], 2)
    series = reader.series(RUN, "protected")
    assert (tuple(series.losses), tuple(series.nanos)) == (tuple(losses), tuple(nanos))
    raw, protected = reader.run(RUN).segments
    assert (protected.steps, protected.last_loss) == (1500, losses[-1])
    assert protected.elapsed_sec == sum(nanos) / 1e9
    assert (raw.steps, raw.elapsed_sec, raw.last_loss) == (0, None, None)
    assert reader.run(RUN).summary.protected_steps == 1500
    assert len(reader.series(RUN, "raw").losses) == 0


def test_points_are_means_that_cover_every_step(reader: Reader, ready: Writer, body: Body) -> None:
    losses = [float(step) for step in range(1, 1101)]
    ready.ingest(RUN, [ChainWriter(RUN).append(PROGRESS, body("raw", 0, losses, [1] * 1100))], 1)
    assert reader.series_points(RUN, "raw", 4) == [(275, 138.0), (550, 413.0), (825, 688.0), (1100, 963.0)]
    assert reader.series_points(RUN, "raw", 5000) == [(step, float(step)) for step in range(1, 1101)]
    assert reader.series_points(RUN, "raw", 0) == reader.series_points(RUN, "protected", 9) == []


def test_loss_that_is_not_finite_is_kept_in_the_series_alone(reader: Reader, ready: Writer, body: Body) -> None:
    chain = ChainWriter(RUN)
    ready.ingest(RUN, [chain.append(PROGRESS, body("raw", 0, [0.5, math.nan], [5, 5]))], 1)
    assert math.isnan(reader.series(RUN, "raw").losses[1])
    assert reader.run(RUN).segments[0].last_loss is None
    assert reader.series_points(RUN, "raw", 9) == [(1, 0.5)]


GOOD = {"segment": "raw", "from": 0, "to": 1, "losses": "AACAPw==", "nanos": "AQAAAAAAAAA="}


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"segment": "third"},
        {"segment": ["raw"]},
        {"from": 1, "to": 2},
        {"from": -1, "to": 0},
        {"from": 0.0},
        {"from": False, "to": True},
        {"to": 2},
        {"to": 2**53 - 1},
        {"losses": 7},
        {"losses": "AACAPw"},
        {"losses": "AACAPx=="},
        {"losses": "AACA\nPw=="},
        {"losses": "\u00e9ACAPw=="},
        {"nanos": "AQAAAAAAAP8="},
    ],
)
def test_malformed_progress_is_refused_with_its_whole_batch(
    reader: Reader, ready: Writer, change: dict[str, Any]
) -> None:
    chain = ChainWriter(RUN)
    events = [chain.append("log", {"text": "before"}), chain.append(PROGRESS, {**GOOD, **change})]
    with pytest.raises(WireError) as caught:
        ready.ingest(RUN, events, 10)
    assert caught.value.code == "progress_invalid"
    assert reader.tail(RUN) == (0, GENESIS, 0)
    assert reader.log(RUN) == []


def test_the_same_progress_unchanged_is_accepted(reader: Reader, ready: Writer) -> None:
    ready.ingest(RUN, [ChainWriter(RUN).append(PROGRESS, GOOD)], 10)
    assert list(reader.series(RUN, "raw").losses) == [1.0]


def test_missing_field_is_refused(ready: Writer) -> None:
    short = {name: value for name, value in GOOD.items() if name != "nanos"}
    with pytest.raises(WireError) as caught:
        ready.ingest(RUN, [ChainWriter(RUN).append(PROGRESS, short)], 10)
    assert caught.value.code == "progress_invalid"


def test_an_impossible_sum_of_step_times_is_refused(ready: Writer, body: Body) -> None:
    chain = ChainWriter(RUN)
    ready.ingest(RUN, [chain.append(PROGRESS, body("raw", 0, [1.0], [2**63 - 1]))], 1)
    with pytest.raises(WireError) as caught:
        ready.ingest(RUN, [chain.append(PROGRESS, body("raw", 1, [1.0], [2**63 - 1]))], 2)
    assert caught.value.code == "progress_invalid"


def test_steps_of_a_segment_that_the_plan_lacks_are_refused(writer: Writer, plan: Plan, body: Body) -> None:
    writer.create_run(RUN, msgspec.structs.replace(plan, segments="raw"))
    with pytest.raises(WireError) as caught:
        writer.ingest(RUN, [ChainWriter(RUN).append(PROGRESS, body("protected", 0, [1.0], [1]))], 1)
    assert caught.value.code == "progress_invalid"


@pytest.mark.parametrize(
    "ts",
    [
        "2026-11-22T21:52:59.402Z", "1969-12-31T23:59:59.999Z", "2026-11-22T21:52:59Z", "2026-11-22T21:52:59.402+00:00",
        "2026-11-22T23:52:59.402+02:00", "2026-11-22T21:52:59.4020Z", "2026-11-22", "yesterday", "", "17",
        "9999-12-31T23:59:59.999Z",
    ],
)  # fmt: skip
def test_any_timestamp_text_is_read_back(reader: Reader, ready: Writer, ts: str) -> None:
    event = ChainWriter(RUN).append(PROGRESS, GOOD, ts=ts)
    ready.ingest(RUN, [event], 1)
    assert lines(reader.events(RUN, "pod")) == lines([event])


@given(st.text(max_size=40) | st.datetimes().map(lambda moment: moment.isoformat(timespec="milliseconds") + "Z"))
@settings(max_examples=300, deadline=None)
def test_a_stored_time_is_restored_to_its_text(text: str) -> None:
    assert chains.long_time(chains.short_time(text)) == text


def test_usual_times_are_stored_as_a_number() -> None:
    assert chains.short_time("2026-11-22T21:52:59.402Z") == 1_795_384_379_402


def test_an_edited_step_breaks_the_chain(home: Path, reader: Reader, ready: Writer, noisy: Noisy) -> None:
    ready.ingest(RUN, pod_log(noisy), 1)
    with sqlite3.connect(database_path(home)) as connection:
        row = connection.execute("SELECT rowid, losses FROM series WHERE packed = 0").fetchone()
        edited = bytes([row[1][0] ^ 1]) + row[1][1:]
        connection.execute("UPDATE series SET losses = ? WHERE rowid = ?", (edited, row[0]))
    connection.close()
    chain = ChainReader(RUN)
    with pytest.raises(WireError):
        for line in lines(reader.events(RUN, "pod")):
            chain.feed(line)


def test_damaged_chunk_is_a_store_error(home: Path, reader: Reader, ready: Writer, noisy: Noisy) -> None:
    ready.ingest(RUN, pod_log(noisy), 1)
    with sqlite3.connect(database_path(home)) as connection:
        connection.execute("UPDATE series SET losses = x'00' WHERE packed = 1")
    connection.close()
    for use in (lambda: reader.series(RUN, "raw"), lambda: reader.events(RUN, "pod")):
        with pytest.raises(StoreError) as caught:
            use()
        assert caught.value.code == "store_corrupt"


def file_size(home: Path) -> int:
    connection = sqlite3.connect(database_path(home))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return database_path(home).stat().st_size


def test_36000_steps_take_less_than_a_megabyte(home: Path, ready: Writer, noisy: Noisy) -> None:
    chain, noise = ChainWriter(RUN), random.Random(5)  # noqa: S311  the same noise each time
    events: list[Event] = []
    for kind in ("raw", "protected"):
        first = 0
        while first < 18_000:
            count = min(18_000 - first, noise.choice((9, 10, 10, 11)))
            millis = (len(events) * 503 + noise.randrange(7)) % 1000
            ts = f"2026-11-22T{len(events) // 3600:02}:{len(events) // 60 % 60:02}:{len(events) % 60:02}.{millis:03}Z"
            events.append(chain.append(PROGRESS, noisy(kind, first, count), ts=ts))
            first += count
            if first % 250 < count:
                checkpoint = {"segment": kind, "step": first, "tensorDigest": f"{noise.getrandbits(256):064x}"}
                events.append(chain.append("train.checkpoint", checkpoint))
    assert sum(event.event == PROGRESS for event in events) == pytest.approx(3600, rel=0.01)
    before = file_size(home)
    position = 0
    while position < len(events):
        size = noise.choice((1, 2, 3, 8))
        ready.ingest(RUN, events[position : position + size], position)
        position += size
    grown = file_size(home) - before
    assert grown < 1_000_000, grown
    with Reader(home) as reader:
        assert lines(reader.events(RUN, "pod")) == lines(events)
        assert len(reader.series(RUN, "raw").losses) == 18_000
    assert base64.b64decode(events[0].body["losses"])
