"""Follows a launched run to its end: its log goes into the store, the runner's answers into its inbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from engine.errors import GlasshouseError, ProviderError, RemoteError, RunError
from engine.events import RunnerClosed
from engine.plan import longest_seconds
from engine.providers.protocol import Lease
from engine.remote.launch import Launched, alive
from engine.remote.reconnect import Reconnecting
from engine.remote.session import SshSession
from engine.remote.tail import Tail
from engine.remote.transfer import put_inbox
from engine.runner.context import RunContext
from engine.runner.heartbeat import Heartbeat
from engine.runner.log_limits import LogBudget, log_limits
from engine.runner.relying_party import RelyingParty
from engine.runner.sightings import Sightings
from engine.wire import ChainReader, canonical

POLL_SECONDS: Final = 0.2
LIVENESS_SECONDS: Final = 3.0
END_SECONDS: Final = 30.0
STOP_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 30.0
TERM_SECONDS: Final = 15.0
CANCEL_SECONDS: Final = 600.0
MOST_CANCEL_SECONDS: Final = 3 * CANCEL_SECONDS
"""However much an allocation that was asked to stop still logs."""
OVERTIME_SECONDS: Final = 600.0


class Follower:
    """One launched supervisor, followed over a link that may drop and reconnect."""

    def __init__(self, context: RunContext, link: Reconnecting, run_dir: str, launched: Launched, lease: Lease) -> None:
        self._context = context
        self._ingest = context.ingest
        self._link = link
        self._run_dir = run_dir
        self._launched = launched
        self._relying = RelyingParty(context, link, run_dir, lease)
        self._heartbeat = Heartbeat(lease.heartbeat)
        tail = context.writer.tail(context.run_id, "pod")
        reader = ChainReader(context.run_id, head=tail.head, next_seq=tail.next_seq)
        limits = log_limits(context.plan)
        self._budget = LogBudget(limits, context.reader.event_counts(context.run_id, "pod"))
        self._tail = Tail(link, f"{run_dir}/events.jsonl", tail.offset, reader, max_bytes=limits.bytes)
        self._cancel_sent_at: float | None = None
        self._until_at = time.monotonic() + longest_seconds(context.plan) + OVERTIME_SECONDS
        self._sightings = Sightings(context.writer, context.journal, context.run_id)
        self._checked_at = self._received_at = time.monotonic()

    async def follow(self) -> None:
        """Run until every segment is done or failed; raises `RunError` (`supervisor_died`, `cancel_unanswered`,
        `run_overdue`), `WireError` (`log_flooded`, and as `Tail.poll`), and as `Ingest.take` raises.
        """
        while not self._segments_over() and not self._ingest.closed:
            if not await self._take():
                await self._check_liveness()
                await asyncio.sleep(POLL_SECONDS)
            await self._relying.react()
            await self._forward_cancel()
            self._check_time()
            await self._heartbeat.beat(self._link)
        # An earlier runner may have stored the last events and died before it acted on them.
        self._relying.conclude()

    async def close(self) -> None:
        """Exchange the final chain heads: each log ends with the head of the other."""
        if not self._ingest.closed:
            await self._put_end()
            await self._until(lambda: self._ingest.closed, END_SECONDS)
        self._relying.conclude()  # a runner of an earlier version may not have processed the wipe's receipt
        closed = RunnerClosed(pod_head=self._context.writer.tail(self._context.run_id, "pod").head)
        if self._context.journal.bodies(RunnerClosed)[-1:] != [closed]:
            self._context.journal.add(closed)

    async def stop(self) -> None:
        """Leave no supervisor behind: request it to stop, wait, then kill its process group."""
        try:
            if await self._is_alive() is False:
                return
            if not self._ingest.closed:
                await self._request_end()
            group = f"-{self._launched.pid}"
            for signal, seconds in (("TERM", GRACE_SECONDS), ("KILL", TERM_SECONDS)):
                if await self._gone_within(seconds):
                    return
                await self._link.call(lambda session, s=signal: _kill(session, s, group))  # type: ignore[misc]
            if not await self._gone_within(5.0):
                raise RunError("The supervisor process on the allocation could not be stopped.", code="supervisor_left")
        except (ProviderError, RemoteError) as error:
            # The allocation itself is released next, whatever runs on it.
            self._context.note(f"The supervisor could not be asked to stop: {error.code}: {error.message}")

    async def _take(self) -> bool:
        tailed = await self._sightings.read(self._tail)
        if not tailed:
            return False
        within, refusal = self._budget.within(tailed)
        if within:
            self._ingest.take(within, self._sightings.note)
            self._sightings.settle()
        if refusal is not None:
            raise refusal
        self._checked_at = self._received_at = time.monotonic()
        return True

    def _segments_over(self) -> bool:
        states = [state for subject, state in self._ingest.states.items() if subject.startswith("segment:")]
        return all(state in {"done", "failed"} for state in states)

    def _check_time(self) -> None:
        """Refuse to wait for ever: neither a log that goes on nor one that stands still prolongs a run."""
        now = time.monotonic()
        sent = self._cancel_sent_at
        if sent is not None and (
            now - max(sent, self._received_at) > CANCEL_SECONDS or now - sent > MOST_CANCEL_SECONDS
        ):
            raise RunError(
                "The allocation did not react to the request to stop.",
                "It is released now; `glasshouse allocations` shows the outcome.",
                code="cancel_unanswered",
            )
        if now > self._until_at:
            raise RunError(
                "The allocation has not ended, although the longest time that its plan can take is over.",
                "It is stopped now. Start the run again, on another allocation if possible.",
                code="run_overdue",
            )

    async def _check_liveness(self) -> None:
        if time.monotonic() - self._checked_at < LIVENESS_SECONDS:
            return
        self._checked_at = time.monotonic()
        if await self._is_alive() is False and not await self._take():
            raise RunError(
                "The supervisor process on the allocation ended before the run was complete.",
                "See the last lines of the run's log; the machine may have run out of memory.",
                code="supervisor_died",
            )

    async def _is_alive(self) -> bool | None:
        return await self._link.call(lambda session: alive(session, self._launched.pid, self._launched.start))

    async def _gone_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if await self._is_alive() is False:
                return True
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def _forward_cancel(self) -> None:
        if self._context.cancelled and self._cancel_sent_at is None:
            await self._put_cancel()

    async def _put_cancel(self) -> None:
        await self._link.call(lambda session: put_inbox(session, self._run_dir, "cancel.json", b"{}"))
        self._cancel_sent_at = self._cancel_sent_at or time.monotonic()

    async def _put_end(self) -> None:
        end = canonical({"runnerHead": self._context.journal.head})
        await self._link.call(lambda session: put_inbox(session, self._run_dir, "end.json", end))

    async def _request_end(self) -> None:
        """Cancel what still runs, leave it time to wipe, and read its log until then."""
        try:
            await self._put_cancel()
            await self._until(lambda: self._segments_over() or self._ingest.closed, STOP_SECONDS)
            self._relying.conclude()
            await self._put_end()
            await self._until(lambda: self._ingest.closed, END_SECONDS)
        except GlasshouseError as error:
            self._context.note(f"The supervisor could not be asked to stop: {error.code}: {error.message}")

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not done() and time.monotonic() < until:
            try:
                if not await self._take():
                    await asyncio.sleep(POLL_SECONDS)
            except GlasshouseError as error:
                self._context.note(f"The rest of the allocation's log could not be read: {error.code}: {error.message}")
                return


async def _kill(session: SshSession, signal: str, group: str) -> None:
    await session.run(["kill", f"-{signal}", "--", group])
