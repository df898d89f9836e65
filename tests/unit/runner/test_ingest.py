"""One reading of the allocation's log is one transaction: whole, once, and only forwards."""

from __future__ import annotations

import asyncio
import base64
import itertools
import struct
from typing import Any

import pytest

from engine.errors import RefusedError, StoreError, WireError
from engine.events import (
    AdapterSaved,
    AdapterSealed,
    Body,
    EvidenceSent,
    Gpu,
    LaunchAccepted,
    LogLine,
    Machine,
    Measured,
    SegmentState,
    TrainFinished,
    TrainMeasured,
    TrainObserved,
    TrainStarted,
    ZeroizeStarted,
    fields_of,
    name_of,
)
from engine.plan import preset
from engine.remote.tail import Tailed
from engine.runner.ingest import Expected, Ingest
from engine.runner.journal import Journal
from engine.runner.sightings import Sightings
from engine.store.progress import Steps, body_of
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.wire import TRAIN_PROGRESS, ChainWriter

RUN = "0123456789ab"
DIGEST = "a" * 64
MACHINE = Machine(
    nonce=base64.b64encode(bytes(16)).decode(), first_process_start=1, gpu_uuid=None, pod_id=None, cpu="x"
)


class Log:
    """An allocation's log as it grows."""

    def __init__(self) -> None:
        self._chain = ChainWriter(RUN)
        self._end = 0
        self._steps = 0

    def raw(self, name: str, fields: dict[str, Any]) -> Tailed:
        self._end += 100
        return Tailed(self._chain.append(name, fields), self._end)

    def add(self, body: Body) -> Tailed:
        return self.raw(name_of(type(body)), fields_of(body))

    def steps(self, losses: list[float], nanos: list[int], segment: Any = "raw") -> Tailed:
        """The next steps of a segment."""
        first, count = self._steps, len(losses)
        self._steps += count
        raw = struct.pack(f"<{count}f", *losses), struct.pack(f"<{count}Q", *nanos)
        return self.raw(TRAIN_PROGRESS, body_of(Steps(segment, first, *raw)))

    def state(self, state: str, at: float, segment: Any = "raw", **more: Any) -> Tailed:
        return self.add(SegmentState(segment=segment, state=state, at=at, **more))


def launch(**changes: Any) -> LaunchAccepted:
    fields: dict[str, Any] = {
        "attester_key": base64.b64encode(bytes(32)).decode(), "bundle_digest": DIGEST, "job_digest": DIGEST,
        "pid": 1, "identity": MACHINE, "cpu": "x", "gpu": None,
    }  # fmt: skip
    return LaunchAccepted(**(fields | changes))


GPU = Gpu(uuid="GPU-1", name="NVIDIA H100", driver="550")
SAVED = AdapterSaved(segment="raw", sha256=DIGEST, size=1, tensor_digest=DIGEST)
SEALED = AdapterSealed(
    segment="protected", sha256=DIGEST, size=1, sealed_sha256=DIGEST, sealed_size=1, tensor_digest=DIGEST,
    nonce_sha256=DIGEST, runner_head=DIGEST,
)  # fmt: skip
MEASURED = Measured(bundle=DIGEST, lock=DIGEST, environment=DIGEST, environment_bytes=1, environment_files=1)


@pytest.fixture
def ingest(writer: Writer, reader: Reader) -> Ingest:
    return Ingest(writer, reader, RUN)


def test_a_reading_brings_events_offset_states_and_segment_fields(ingest: Ingest, reader: Reader) -> None:
    log = Log()
    ingest.take([
        log.add(launch(gpu=Gpu(uuid="GPU-1", name="NVIDIA H100", driver="550"))),
        log.state("launching", 1.0),
        log.state("loading", 3.5),
        log.add(AdapterSaved(segment="raw", sha256=DIGEST, size=1, tensor_digest=DIGEST)),
    ])  # fmt: skip
    view = reader.run(RUN)
    raw = view.segments[0]
    assert view.summary.gpu_model == "NVIDIA H100"
    assert (raw.state, raw.phases, raw.adapter_sha256) == ("loading", {"launching": 2.5}, DIGEST)
    assert reader.tail(RUN).offset == 400
    assert ingest.adapters["raw"].sha256 == DIGEST


def test_what_comes_before_a_refused_event_is_kept_and_nothing_behind_it(ingest: Ingest, reader: Reader) -> None:
    log = Log()
    events = [log.state("launching", 1.0), log.raw("segment.state", {"segment": "raw"}), log.state("loading", 2.0)]
    with pytest.raises(WireError) as caught:
        ingest.take(events)
    assert caught.value.code == "event_invalid"
    assert reader.run(RUN).segments[0].state == ingest.states["segment:raw"] == "launching"
    assert [event.event for event in reader.events(RUN, "pod")] == ["segment.state"]
    assert reader.tail(RUN).offset == 100


def test_a_store_that_fails_takes_nothing_in_and_leaves_no_state_ahead_of_it(
    ingest: Ingest, writer: Writer, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    events = [log.add(launch()), log.state("launching", 1.0)]

    def full(*_: object) -> int:
        raise StoreError("The disk is full.", code="store_full")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "ingest", full)
        with pytest.raises(StoreError):
            ingest.take(events)
    assert ingest.states["segment:raw"] == reader.run(RUN).segments[0].state == "pending"
    assert ingest.launch is None
    assert "launch" not in reader.evidence(RUN)
    ingest.take(events)  # the same reading again, once there is room
    assert reader.run(RUN).segments[0].state == "launching"
    assert ingest.launch == launch()


def test_the_same_events_again_change_nothing(ingest: Ingest, writer: Writer, reader: Reader) -> None:
    log = Log()
    events = [log.add(launch()), log.state("launching", 1.0), log.state("loading", 2.0)]
    ingest.take(events)
    before, transitions = reader.tail(RUN), reader.run(RUN).transitions
    Ingest(writer, reader, RUN).take(events)
    assert reader.tail(RUN) == before
    assert reader.run(RUN).transitions == transitions


def test_a_restarted_runner_knows_what_the_log_said(ingest: Ingest, writer: Writer, reader: Reader) -> None:
    log = Log()
    ingest.take([log.add(launch()), log.state("launching", 1.0), log.add(LogLine(text="out of memory", code="oom"))])
    again = Ingest(writer, reader, RUN)
    assert again.launch == launch()
    again.take([log.state("failed", 4.0, code="oom", stop_reason="error")])
    segment = reader.run(RUN).segments[0]
    assert (segment.state, segment.reason, segment.stop_reason) == (
        "failed",
        'oom: The raw segment failed. The allocation says: "out of memory"',
        "error",
    )
    assert segment.error is not None
    assert segment.error.hint
    assert segment.phases == {"launching": 3.0}


def test_a_state_that_goes_back_is_refused(ingest: Ingest, reader: Reader) -> None:
    log = Log()
    with pytest.raises(RefusedError) as caught:
        ingest.take([log.state("training", 2.0), log.state("loading", 3.0)])
    assert caught.value.code == "phase_impossible"
    assert reader.run(RUN).segments[0].state == ingest.states["segment:raw"] == "training"


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (launch(), launch(pid=2), "launch_repeated"),
        (launch(bundle_digest="b" * 64), None, "measurement_mismatch"),
        (launch(job_digest="b" * 64), None, "job_mismatch"),
        (EvidenceSent(token="one"), EvidenceSent(token="two"), "evidence_repeated"),
        (SAVED, SAVED, "event_repeated"),
        (SEALED, SEALED, "event_repeated"),
        (MEASURED, MEASURED, "event_repeated"),
        (ZeroizeStarted(segment="protected"), SEALED, "training_out_of_order"),
    ],
)
def test_what_contradicts_the_run_is_refused(
    ingest: Ingest, reader: Reader, monkeypatch: pytest.MonkeyPatch, first: Body, second: Body | None, code: str
) -> None:
    monkeypatch.setattr("engine.runner.ingest.observed_controls", lambda _: {})
    ingest.expected = Expected(DIGEST, DIGEST)
    log = Log()
    with pytest.raises(RefusedError) as caught:
        ingest.take([log.add(body) for body in (first, second) if body is not None])
    assert caught.value.code == code
    assert len(reader.events(RUN, "pod")) == (0 if second is None else 1)


def test_a_training_on_another_accelerator_than_the_launch_named_is_refused(ingest: Ingest) -> None:
    log = Log()
    started = TrainStarted(segment="raw", gpu=GPU, settling_steps=0, numerics={})
    with pytest.raises(RefusedError) as caught:
        ingest.take([log.add(launch()), log.state("launching", 1.0), log.state("training", 2.0), log.add(started)])
    assert caught.value.code == "log_contradicts"


def test_steps_of_another_length_than_their_range_are_refused_by_the_store(ingest: Ingest, reader: Reader) -> None:
    log = Log()
    steps = {"segment": "raw", "from": 0, "to": 2, "losses": "", "nanos": ""}
    with pytest.raises(WireError) as caught:
        ingest.take([log.state("training", 1.0), log.raw(TRAIN_PROGRESS, steps)])
    assert caught.value.code == "progress_invalid"
    assert [event.event for event in reader.events(RUN, "pod")] == ["segment.state"]


def trained(log: Log, count: int = 3) -> list[Tailed]:
    """A raw segment from its launch to the end of its training, each step a millisecond."""
    losses, nanos = [1.5] * count, [1_000_000] * count
    settling = preset("demo").training.settling_steps
    return [
        log.state("launching", 1.0),
        log.state("training", 2.0),
        log.add(TrainStarted(segment="raw", gpu=None, settling_steps=settling, numerics={})),
        log.steps(losses, nanos),
        log.add(TrainMeasured(segment="raw", steps=count, elapsed_ns=sum(nanos), at=2.5)),
        log.add(
            TrainFinished(
                segment="raw", steps=count, stop_reason="cancelled", final_loss=1.5, elapsed_ns=sum(nanos),
                adapter_finite=True, step_chain=None, tensor_digest="c" * 64,
            )
        ),
    ]  # fmt: skip


def test_a_finished_segment_has_its_last_loss_and_digest(ingest: Ingest, reader: Reader) -> None:
    ingest.take(trained(Log(), 1))
    segment = reader.run(RUN).segments[0]
    assert (segment.final_loss, segment.stop_reason, segment.tensor_digest) == (1.5, "cancelled", "c" * 64)


def test_more_steps_than_the_plan_are_refused_and_those_before_are_kept(ingest: Ingest, reader: Reader) -> None:
    log = Log()
    reading = [
        log.state("training", 2.0),
        log.add(TrainStarted(segment="raw", gpu=None, settling_steps=0, numerics={})),
        log.steps([1.5] * 2, [1_000_000] * 2),
    ]
    too_many = log.steps([1.5] * 2799, [1_000_000] * 2799)  # the demo has 2,800
    with pytest.raises(RefusedError) as caught:
        ingest.take([*reading, too_many])
    assert caught.value.code == "steps_over_plan"
    assert reader.run(RUN).segments[0].steps == 2
    assert reader.tail(RUN).offset == 300


class Seen:
    """A runner's sightings over a log that the test fills."""

    def __init__(self, writer: Writer, reader: Reader) -> None:
        self.journal = Journal(writer, reader, RUN)
        self.sightings = Sightings(writer, self.journal, RUN)
        self.ingest = Ingest(writer, reader, RUN)

    def read(self, events: list[Tailed]) -> None:
        """One reading that reached the log's end, and brought these events."""

        class Log:
            drained = True

            async def poll(self) -> list[Tailed]:
                return events

        asyncio.run(self.sightings.read(Log()))  # type: ignore[arg-type]
        if events:
            self.ingest.take(events, self.sightings.note)
            self.sightings.settle()

    def observed(self) -> list[TrainObserved]:
        return self.journal.bodies(TrainObserved)


def test_a_reading_with_several_events_of_the_training_is_one_line_of_the_runners_log(
    writer: Writer, reader: Reader
) -> None:
    seen, events = Seen(writer, reader), trained(Log())
    seen.sightings.nothing_yet()
    seen.read([])
    seen.read(events[:4])
    seen.read(events[4:])
    first, second = seen.observed()
    assert [one.event for one in first.seen] == ["train.started"]
    assert [(one.event, one.hash) for one in second.seen] == [
        ("train.measured", events[4].event.hash),
        ("train.finished", events[5].event.hash),
    ]
    assert first.after is not None
    assert second.after is not None
    assert first.after <= first.at
    assert first.after <= second.after <= second.at  # the second reading began after the first one
    assert first.clock == second.clock


def test_a_runner_that_dies_between_the_events_and_their_line_loses_and_doubles_nothing(
    writer: Writer, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = trained(Log())
    dying = Seen(writer, reader)
    dying.sightings.nothing_yet()

    def dies(*_: object) -> int:
        raise StoreError("The disk is full.", code="store_full")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "append_events", dies)  # after the ingest, before the journal's line
        with pytest.raises(StoreError):
            dying.read(events)
    assert reader.events(RUN, "pod") == [] == dying.observed()
    again = Seen(writer, reader)
    again.read(events)
    Seen(writer, reader).read(events)  # a replay
    (line,) = again.observed()
    assert len(line.seen) == 3
    assert reader.events(RUN, "runner")[-1].seq == 0


def test_a_resumed_runner_takes_the_last_reading_of_the_one_before_it(
    writer: Writer, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = trained(Log())
    times = itertools.count(1_000_000, 1_000_000)
    monkeypatch.setattr("engine.runner.sightings.boot_micros", lambda: next(times))
    first = Seen(writer, reader)
    first.sightings.nothing_yet()
    first.read(events[:3])
    resumed = Seen(writer, reader)
    resumed.sightings.nothing_yet()  # what was launched may have written since: the first runner's time is the bound
    resumed.read(events[3:])
    started, ended = resumed.observed()
    assert started.after is not None
    assert ended.after is not None
    assert started.after < ended.after < started.at < ended.at  # its second reading began where the first one stood


def test_times_of_another_boot_are_unknown(writer: Writer, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    events = trained(Log())
    first = Seen(writer, reader)
    first.sightings.nothing_yet()
    first.read(events[:3])
    monkeypatch.setattr("engine.runner.sightings.boot_id", lambda: "another boot")
    Seen(writer, reader).read(events[3:])
    started, ended = first.observed()
    assert ended.after is None
    assert started.clock != ended.clock
