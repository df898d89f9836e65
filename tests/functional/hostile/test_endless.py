"""An allocation that never ends: floods at the rate of the link, lines without an end, a supervisor past its time."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import GlasshouseError
from engine.runner.log_limits import LOG_LINES
from engine.wire import LOG, TRAIN_CHECKPOINT
from tests.functional.hostile.pod import Operator, end_of


async def _code(following: asyncio.Task[None]) -> str:
    with pytest.raises(GlasshouseError) as caught:
        await end_of(following)
    return caught.value.code


async def test_a_flood_of_lines_ends_the_run_and_the_store_keeps_what_was_within_the_limit(operator: Operator) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    operator.pod.write(b"".join(operator.pod.line(LOG, {"text": f"line {n}"}) for n in range(2 * LOG_LINES)))
    assert await _code(following) == "log_flooded"
    assert operator.reader.event_counts(operator.run_id, "pod")[LOG][0] == LOG_LINES


async def test_more_checkpoints_than_the_plan_has_end_the_run(operator: Operator) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    body = {"segment": "protected", "step": 1, "tensorDigest": "0" * 64, "stepChain": "0" * 64}
    operator.pod.write(b"".join(operator.pod.line(TRAIN_CHECKPOINT, body | {"step": n}) for n in range(1, 1000)))
    assert await _code(following) == "training_out_of_order"
    assert TRAIN_CHECKPOINT not in operator.reader.event_counts(operator.run_id, "pod")


async def test_a_log_longer_than_the_plan_can_bring_is_not_read(operator: Operator) -> None:
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    with operator.pod.log.open("ab") as file:
        file.truncate(64 * 1024 * 1024)  # far below the limit of all logs, and above that of three steps
    assert await _code(following) == "log_too_long"


@pytest.mark.parametrize("kind", ["silent", "a byte at a time", "busy"])
async def test_a_supervisor_past_the_longest_time_of_its_plan_is_not_waited_for(operator: Operator, kind: str) -> None:
    follower = operator.follower()
    following = asyncio.create_task(follower.follow())
    await operator.released()

    async def writes() -> None:
        while not following.done():
            if kind == "a byte at a time":
                operator.pod.write(b"x")
            elif kind == "busy":
                operator.pod.say(LOG, {"text": "still at it"})
            await asyncio.sleep(0.05)

    writing = asyncio.create_task(writes())
    follower._until_at = 0.0  # as if the time were over
    assert await _code(following) == "run_overdue"
    await writing


async def test_a_flood_after_a_request_to_stop_does_not_prolong_the_run(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.runner.follow.MOST_CANCEL_SECONDS", 0.5)
    following = asyncio.create_task(operator.follower().follow())
    await operator.released()
    operator.context.cancelled = True
    await operator.pod.message("cancel.json")

    async def writes() -> None:
        while not following.done():
            operator.pod.say(LOG, {"text": "soon"})
            await asyncio.sleep(0.05)

    writing = asyncio.create_task(writes())
    assert await _code(following) == "cancel_unanswered"
    await writing
