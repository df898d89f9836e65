"""Following a launched run: its log into the store, the runner's answers into its inbox, to the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from engine.errors import GlasshouseError, ProviderError, RemoteError, RunError
from engine.events import RunnerClosed
from engine.providers.protocol import Lease
from engine.remote.launch import Launched, alive
from engine.remote.reconnect import Reconnecting
from engine.remote.session import SshSession
from engine.remote.tail import Tail
from engine.remote.transfer import put_inbox
from engine.runner.context import RunContext
from engine.runner.heartbeat import Heart
from engine.runner.relying_party import RelyingParty
from engine.wire import ChainReader, canonical

POLL_SECONDS: Final = 0.2
LIVENESS_SECONDS: Final = 3.0
END_SECONDS: Final = 30.0
STOP_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 30.0
TERM_SECONDS: Final = 15.0
CANCEL_SECONDS: Final = 600.0


class Follower:
    """One launched supervisor, seen over a link that may come and go."""

    def __init__(self, context: RunContext, link: Reconnecting, run_dir: str, launched: Launched, lease: Lease) -> None:
        self._context = context
        self._ingest = context.ingest
        self._link = link
        self._run_dir = run_dir
        self._launched = launched
        self._relying = RelyingParty(context, link, run_dir, lease)
        self._heart = Heart(lease.heartbeat)
        tail = context.writer.tail(context.run_id, "pod")
        reader = ChainReader(context.run_id, head=tail.head, next_seq=tail.next_seq)
        self._tail = Tail(link, f"{run_dir}/events.jsonl", tail.offset, reader)
        self._cancel_sent = False
        self._looked = self._heard = time.monotonic()

    async def follow(self) -> None:
        """Until every segment is done or failed; raises `RunError` (`supervisor_died`) and what the log refuses."""
        while not self._segments_over() and not self._ingest.closed:
            if not await self._take():
                await self._check_liveness()
                await asyncio.sleep(POLL_SECONDS)
            await self._relying.react()
            await self._forward_cancel()
            await self._heart.beat(self._link)
        # An earlier runner may have taken in the last events and died before it acted on them.
        self._relying.conclude()

    async def close(self) -> None:
        """Exchange the last heads: the allocation's log ends with ours, ours with its."""
        if not self._ingest.closed:
            await self._put_end()
            await self._until(lambda: self._ingest.closed, END_SECONDS)
        self._relying.conclude()  # an earlier version's runner may have left the wipe's proof behind a final state
        closed = RunnerClosed(pod_head=self._context.writer.tail(self._context.run_id, "pod").head)
        if self._context.journal.bodies(RunnerClosed)[-1:] != [closed]:
            self._context.journal.add(closed)

    async def stop(self) -> None:
        """See that no supervisor is left behind: ask, wait, then end it with its children."""
        try:
            if await self._is_alive() is False:
                return
            if not self._ingest.closed:
                await self._ask_to_end()
            group = f"-{self._launched.pid}"
            for signal, seconds in (("TERM", GRACE_SECONDS), ("KILL", TERM_SECONDS)):
                if await self._gone_within(seconds):
                    return
                await self._link.call(lambda session, s=signal: _kill(session, s, group))  # type: ignore[misc]
            if not await self._gone_within(5.0):
                raise RunError("The supervisor on the allocation could not be ended.", code="supervisor_left")
        except (ProviderError, RemoteError) as error:
            # The allocation itself is ended next, whatever runs on it.
            self._context.note(f"the supervisor could not be asked to end: {error.code}")

    async def _take(self) -> bool:
        tailed = await self._tail.poll()
        if not tailed:
            return False
        self._ingest.take(tailed)
        self._looked = self._heard = time.monotonic()
        return True

    def _segments_over(self) -> bool:
        states = [state for subject, state in self._ingest.states.items() if subject.startswith("segment:")]
        return all(state in {"done", "failed"} for state in states)

    async def _check_liveness(self) -> None:
        if self._cancel_sent and time.monotonic() - self._heard > CANCEL_SECONDS:
            raise RunError(
                "The allocation did not follow the request to stop.", "It is ended now.", code="cancel_unanswered"
            )
        if time.monotonic() - self._looked < LIVENESS_SECONDS:
            return
        self._looked = time.monotonic()
        if await self._is_alive() is False and not await self._take():
            raise RunError(
                "The supervisor on the allocation ended without finishing its work.",
                "The run's log has its last lines; memory may have run out.",
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
        if self._context.cancelled and not self._cancel_sent:
            await self._put_cancel()

    async def _put_cancel(self) -> None:
        await self._link.call(lambda session: put_inbox(session, self._run_dir, "cancel.json", b"{}"))
        self._cancel_sent = True

    async def _put_end(self) -> None:
        end = canonical({"runnerHead": self._context.journal.head})
        await self._link.call(lambda session: put_inbox(session, self._run_dir, "end.json", end))

    async def _ask_to_end(self) -> None:
        """Cancel what still runs, give it the time to wipe, and take in what it says of that."""
        try:
            await self._put_cancel()
            await self._until(lambda: self._segments_over() or self._ingest.closed, STOP_SECONDS)
            self._relying.conclude()
            await self._put_end()
            await self._until(lambda: self._ingest.closed, END_SECONDS)
        except GlasshouseError as error:
            self._context.note(f"the supervisor could not be asked to end: {error.code}")

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not done() and time.monotonic() < until:
            try:
                if not await self._take():
                    await asyncio.sleep(POLL_SECONDS)
            except GlasshouseError as error:
                self._context.note(f"the log ended badly: {error.code}")
                return


async def _kill(session: SshSession, signal: str, group: str) -> None:
    await session.run(["kill", f"-{signal}", "--", group])
