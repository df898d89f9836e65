"""A hostile allocation against the runner's own parts, after the release: log, receipts, adapters, closing."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.zeroization import Area, ProcessEnd
from engine.errors import GlasshouseError
from engine.events import AdapterCollected
from engine.runner.collect import collect
from engine.sealing.adapter import AdapterBinding, seal_adapter
from engine.store.progress import Steps, body_of
from engine.wire import LOG, MAX_LINE_BYTES, RUN_CLOSED, SEGMENT_STATE, TRAIN_PROGRESS, TRAIN_STARTED, sha256_hex
from tests.functional.hostile.pod import Operator, Pod, end_of
from tests.vectors import honest

PICKLE = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85R."


def _lines(pod: Pod, count: int) -> list[bytes]:
    return [pod.line(LOG, {"n": n}) for n in range(count)]


def _dropped(pod: Pod) -> None:
    pod.write(_lines(pod, 2)[1])


def _edited(pod: Pod) -> None:
    pod.write(pod.line(LOG, {"text": "loss 9.0"}).replace(b"9.0", b"1.0"))


def _cut(pod: Pod) -> None:
    pod.log.write_bytes(pod.log.read_bytes()[:-1])


def _without_end(pod: Pod) -> None:
    pod.write(b"x" * (MAX_LINE_BYTES + 1))


def _exchanged_for_a_link(pod: Pod) -> None:
    pod.log.rename(pod.folder / "elsewhere")
    pod.log.symlink_to("/dev/zero")


def _half_a_character(pod: Pod) -> None:
    pod.write(pod.line(LOG, {"key": 1}).replace(b'"key"', b'"\\ud800"'))


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (_dropped, "log_chain_broken"),
        (_edited, "log_hash_wrong"),
        (_cut, "log_shrunk"),
        (_without_end, "log_line_too_long"),
        (_exchanged_for_a_link, "log_not_a_file"),
        (_half_a_character, "json_invalid"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_manipulated_log_ends_the_run(operator: Operator, attack: Callable[[Pod], None], code: str) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    while operator.writer.tail(operator.run_id, "pod").offset < operator.pod.log.stat().st_size:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    before = operator.writer.tail(operator.run_id, "pod")
    attack(operator.pod)
    with pytest.raises(GlasshouseError) as caught:
        await end_of(following)
    assert caught.value.code == code
    assert operator.writer.tail(operator.run_id, "pod") == before
    operator.context.ingest.settle()
    assert operator.reader.run(operator.run_id).summary.runtime_state == "unverified"
    assert operator.checks()["chains_whole"] == "failed"


def _forged(operator: Operator) -> None:
    operator.say_zeroized(operator.zeroized(), Ed25519PrivateKey.generate())


def _replayed(operator: Operator) -> None:
    operator.say_zeroized(operator.zeroized(nonce_sha256="0" * 64))


def _without_control(operator: Operator) -> None:
    silent = {"keyproc open": honest.scan(dict.fromkeys(honest.KEYS[:4], 0))}
    operator.say_zeroized(operator.zeroized(before={**operator.zeroized().before, **silent}))


def _with_hits(operator: Operator) -> None:
    hits = {"trainer": honest.scan({**dict.fromkeys(honest.CLASSES, 0), "adapter": 3})}
    operator.say_zeroized(operator.zeroized(after={**operator.zeroized().after, **hits}))


def _empty(operator: Operator) -> None:
    """A target called x, a process called cat, no methods, ended before it began, thousands of processes unseen."""
    stray = honest.scan({"adapter": 0}, bytes_read=1, skipped={"device": Area(1, 10**10)})
    cat = ProcessEnd(role="cat", pid=1, start_time=1, gone=True)
    began = "2999-01-01T00:00:00.000Z"
    operator.say_zeroized(
        operator.zeroized(
            before={"x": stray}, after={"x": stray}, processes=[cat], methods=[], began=began, processes_unseen=9999,
            sanitization="NIST SP 800-88 Purge",
        )
    )  # fmt: skip


def _of_another_adapter(operator: Operator) -> None:
    operator.say_zeroized(operator.zeroized(adapter_sha256="1" * 64))


def _linked_elsewhere(operator: Operator) -> None:
    operator.say_zeroized(operator.zeroized(pod_head="1" * 64))


def _hardly_read(operator: Operator) -> None:
    after = operator.zeroized().after
    few = msgspec.structs.replace(after["trainer"], bytes_read=4096)
    operator.say_zeroized(operator.zeroized(after={**after, "trainer": few}))


def _without_an_adapter(operator: Operator) -> None:
    operator.sealed = True  # said, and not done
    operator.say_zeroized(operator.zeroized(adapter_sha256=None))


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (_forged, "envelope_signer_unknown"),
        (_replayed, "receipt_other_run"),
        (_without_control, "zeroization_no_control"),
        (_with_hits, "zeroization_hits"),
        (_empty, "zeroization_constants"),
        (_of_another_adapter, "zeroization_other_log"),
        (_linked_elsewhere, "zeroization_other_log"),
        (_hardly_read, "zeroization_short"),
        (_without_an_adapter, "zeroization_incomplete"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("end", ["done", "failed"])
async def test_a_receipt_that_proves_nothing_leaves_the_runtime_unverified(
    operator: Operator, attack: Callable[[Operator], None], code: str, end: str
) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    attack(operator)
    operator.pod.state(end, **({} if end == "done" else {"code": "trainer_died"}))
    await end_of(following)
    countersigned = "zeroization" in operator.reader.receipts(operator.run_id)
    assert countersigned == (attack in (_without_control, _with_hits, _hardly_read, _without_an_adapter))
    view = operator.reader.run(operator.run_id)
    assert (view.summary.runtime_state, view.summary.key) == ("unverified", "released")
    reasons = [change.reason for change in view.transitions if change.subject == "runtime"]
    assert code in reasons[-1]
    assert operator.checks()["zeroization_proven"] == "failed"


async def test_a_receipt_that_proves_the_wipe_is_accepted(operator: Operator) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    operator.say_zeroized(operator.zeroized())
    operator.pod.state("done")
    await end_of(following)
    summary = operator.reader.run(operator.run_id).summary
    assert (summary.runtime_state, summary.key) == ("zeroized", "destroyed")


def _sealed(operator: Operator, plain: bytes, **changes: Any) -> bytes:
    out = io.BytesIO()
    context = operator.context
    binding = AdapterBinding(
        operator.run_id, "protected", context.staging.prepared.manifest_digest or "", context.ingest.nonce_digest or ""
    )
    recipient = base64.b64decode(context.staging.recipient_public())
    seal_adapter(
        memoryview(plain), recipient, msgspec.structs.replace(binding, **changes), bytearray(b"k" * 32), out
    )  # fmt: skip
    return out.getvalue()


def _exchanged(operator: Operator) -> tuple[bytes, bytes]:
    return _sealed(operator, PICKLE), _sealed(operator, PICKLE)


def _pickled(operator: Operator) -> tuple[bytes, bytes]:
    sealed = _sealed(operator, PICKLE)
    return sealed, sealed


def _of_an_earlier_run(operator: Operator) -> tuple[bytes, bytes]:
    sealed = _sealed(operator, PICKLE, run_id="earlier")
    return sealed, sealed


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (_exchanged, "adapter_other_sealed_file"),
        (_pickled, "adapter_malformed"),
        (_of_an_earlier_run, "adapter_wrong_binding"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_an_adapter_that_does_not_belong_to_the_run_is_rejected(
    operator: Operator, attack: Callable[[Operator], tuple[bytes, bytes]], code: str
) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    announced, stored = attack(operator)
    operator.pod.say_sealed(sha256=sha256_hex(PICKLE), sealedSha256=sha256_hex(announced))
    operator.pod.state("done")
    await end_of(following)
    (operator.pod.folder / "outbox" / "protected" / "adapter.sealed").write_bytes(stored)
    await collect(operator.context, operator.link, operator.run_dir)
    collected = operator.context.journal.bodies(AdapterCollected)[-1]
    assert (collected.segment, collected.status, collected.code) == ("protected", "wrong", code)
    assert operator.checks()["adapters_open"] == "failed"


@pytest.mark.parametrize("size", [0, 16 * 1024**2, 4 * 1024**3 + 1])
async def test_a_link_and_an_endless_file_in_place_of_the_adapter_are_not_fetched(
    operator: Operator, size: int, tmp_path: Path
) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    operator.pod.say_sealed()
    operator.pod.state("done")
    await end_of(following)
    path = operator.pod.folder / "outbox" / "protected" / "adapter.sealed"
    if size:
        with path.open("wb") as file:
            file.truncate(size)
    else:
        path.symlink_to(tmp_path)
    with pytest.raises(GlasshouseError) as caught:
        await collect(operator.context, operator.link, operator.run_dir)
    assert caught.value.code == ("remote_too_large" if size else "remote_not_a_file")
    assert not list(operator.context.folder.adapters.glob("*sealed*"))
    assert operator.checks()["adapters_open"] == "failed"


async def test_a_log_that_closes_over_a_foreign_head_makes_no_clean_row(operator: Operator) -> None:
    follower = operator.follower()
    following = asyncio.create_task(follower.follow())
    await operator.released()
    operator.pod.state("done")
    await end_of(following)
    operator.pod.say_closed("0" * 64)
    await follower.close()
    assert operator.checks()["chains_whole"] == "failed"


async def test_a_log_whose_end_was_cut_off_makes_no_clean_row(operator: Operator) -> None:
    """The pod withholds its last lines: the runner waits, then closes the run with an incomplete log."""
    follower = operator.follower()
    following = asyncio.create_task(follower.follow())
    await operator.released()
    operator.pod.state("done")
    await end_of(following)
    operator.pod.say_closed(operator.context.journal.head)
    whole = operator.pod.log.read_bytes()
    operator.pod.log.write_bytes(whole[: whole.rstrip(b"\n").rfind(b"\n") + 1])
    closing = asyncio.create_task(follower.close())
    await operator.pod.message("end.json")
    await asyncio.sleep(0.5)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert operator.checks()["chains_whole"] == "failed"


@pytest.mark.parametrize(
    ("event", "body"),
    [
        ("made.up", {}),
        (RUN_CLOSED, {"runnerHead": ["no", "head"], "failed": None, "receipt": {}}),
        (SEGMENT_STATE, {"segment": "protected", "state": "done", "at": 1.0, "host": "10.1.2.3"}),
        (SEGMENT_STATE, {"segment": "protected", "state": "see http://10.1.2.3/", "at": 1.0}),
        (
            TRAIN_STARTED,
            {
                "segment": "protected",
                "gpu": None,
                "settlingSteps": 5,
                "numerics": {"torch": "built in /home/alice/torch"},
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_event_that_could_not_be_published_is_rejected(
    operator: Operator, event: str, body: dict[str, Any]
) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    operator.pod.say(event, body)
    with pytest.raises(GlasshouseError) as caught:
        await end_of(following)
    assert caught.value.code == "event_invalid"
    assert event not in {one.event for one in operator.reader.events(operator.run_id, "pod") if one.body == body}


async def test_a_training_that_the_plan_cannot_produce_ends_the_run(operator: Operator) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    operator.pod.state("training")
    operator.pod.say(TRAIN_STARTED, {"segment": "protected", "gpu": None, "settlingSteps": 5, "numerics": {}})
    raw = struct.pack("<60000f", *[1.5] * 60_000), struct.pack("<60000Q", *[1] * 60_000)
    for first in range(0, 60_000, 10_000):  # for a plan of 3
        last = first + 10_000
        steps = Steps("protected", first, raw[0][4 * first : 4 * last], raw[1][8 * first : 8 * last])
        operator.pod.say(TRAIN_PROGRESS, body_of(steps))
    with pytest.raises(GlasshouseError) as caught:
        await end_of(following)
    assert caught.value.code == "steps_over_plan"
    assert operator.reader.run(operator.run_id).segments[0].steps == 0
    assert "train.observed" in operator.names()  # what came before it is kept, and was seen
    assert operator.checks()["timing_consistent"] == "failed"
