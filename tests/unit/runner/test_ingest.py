"""One reading of the allocation's log is one transaction: whole, once, and only forwards."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import RefusedError, StoreError, WireError
from engine.events import (
    AdapterSaved,
    Body,
    EvidenceSent,
    Gpu,
    LaunchAccepted,
    LogLine,
    Machine,
    SegmentState,
    TrainFinished,
    fields_of,
    name_of,
)
from engine.plan import preset
from engine.remote.tail import Tailed
from engine.runner.ingest import Expected, Ingest
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

    def raw(self, name: str, fields: dict[str, Any]) -> Tailed:
        self._end += 100
        return Tailed(self._chain.append(name, fields), self._end)

    def add(self, body: Body) -> Tailed:
        return self.raw(name_of(type(body)), fields_of(body))

    def state(self, state: str, at: float, segment: Any = "raw", **more: Any) -> Tailed:
        return self.add(SegmentState(segment=segment, state=state, at=at, **more))


def launch(**changes: Any) -> LaunchAccepted:
    fields: dict[str, Any] = {
        "attester_key": base64.b64encode(bytes(32)).decode(), "bundle_digest": DIGEST, "job_digest": DIGEST,
        "pid": 1, "identity": MACHINE, "cpu": "x", "gpu": None,
    }  # fmt: skip
    return LaunchAccepted(**(fields | changes))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    with Writer(tmp_path) as made:
        made.create_run(RUN, preset("demo"))
        yield made


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with Reader(tmp_path) as made:
        yield made


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


def test_a_state_never_goes_back(ingest: Ingest, reader: Reader) -> None:
    log = Log()
    ingest.take([log.state("training", 2.0), log.state("loading", 3.0)])
    assert reader.run(RUN).segments[0].state == "training"


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (launch(), launch(pid=2), "launch_repeated"),
        (launch(bundle_digest="b" * 64), None, "measurement_mismatch"),
        (launch(job_digest="b" * 64), None, "job_mismatch"),
        (EvidenceSent(token="one"), EvidenceSent(token="two"), "evidence_repeated"),
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


def test_steps_of_another_length_than_their_range_are_refused_by_the_store(ingest: Ingest, reader: Reader) -> None:
    log = Log()
    steps = {"segment": "raw", "from": 0, "to": 2, "losses": "", "nanos": ""}
    with pytest.raises(WireError) as caught:
        ingest.take([log.state("training", 1.0), log.raw(TRAIN_PROGRESS, steps)])
    assert caught.value.code == "progress_invalid"
    assert [event.event for event in reader.events(RUN, "pod")] == ["segment.state"]


def test_a_finished_segment_has_its_last_loss_and_digest(ingest: Ingest, reader: Reader) -> None:
    finished = TrainFinished(
        segment="protected", steps=3, stop_reason="step_budget", final_loss=1.5, elapsed_ns=9, adapter_finite=True,
        step_chain=DIGEST, tensor_digest="c" * 64,
    )  # fmt: skip
    ingest.take([Log().add(finished)])
    segment = reader.run(RUN).segments[1]
    assert (segment.final_loss, segment.stop_reason, segment.tensor_digest) == (1.5, "step_budget", "c" * 64)
