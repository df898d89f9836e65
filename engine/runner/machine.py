"""The state machine of a run: each state is committed before it is acted upon, and each step bears repeating."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from typing import Final, Literal

from engine.errors import GlasshouseError, RunError
from engine.plan import load_plan
from engine.providers import provider_for
from engine.providers.protocol import Lease, Provider
from engine.records import build_row
from engine.records.facts import gather
from engine.remote.reconnect import Reconnecting
from engine.remote.session import SshSession
from engine.runner.allocation import Allocation
from engine.runner.collect import collect
from engine.runner.context import RunContext
from engine.runner.folder import RunFolder
from engine.runner.follow import Follower
from engine.runner.ingest import Ingest
from engine.runner.journal import Journal
from engine.runner.signing import sign_row
from engine.runner.staging import Staging
from engine.store.reader import Reader
from engine.store.views import FINAL_RUN_STATES, RunState
from engine.store.writer import Writer

RUN_ORDER: Final = ("queued", "allocating", "connecting", "staging", "running", "collecting", "cleaning")
POLL_SECONDS: Final = 0.25
LOCK_SECONDS: Final = 1.0
FinalState = Literal["finished", "failed", "cancelled"]


class CancelledRun(RunError):
    """A person asked to end the run."""

    default_code = "cancelled"


class Runner:
    """One run, from queued to a final state."""

    def __init__(self, home: Path, run_id: str) -> None:
        self.home = home
        self.run_id = run_id
        self.writer = Writer(home)
        self.reader = Reader(home)
        view = self.reader.run(run_id)
        self.plan = load_plan(view.plan)
        self.state = view.summary.state
        self.folder = RunFolder(home, run_id)
        self.provider: Provider = provider_for(self.plan.provider.name, home)
        self.cancelled = False
        self.context: RunContext | None = None
        self._error: GlasshouseError | None = None

    async def execute(self) -> str:
        """Claim the run and bring it to its end; returns the final state."""
        self.writer.claim_runner(self.run_id)
        try:
            if self.state in FINAL_RUN_STATES:
                return self.state
            self.journal = Journal(self.writer, self.run_id)
            self.ingest = Ingest(self.writer, self.reader, self.run_id)
            self.allocation = Allocation(self.writer, self.reader, self.provider, self.plan, self.run_id, self.journal)
            watch = asyncio.create_task(self._watch_requests())
            try:
                await self._drive()
            finally:
                watch.cancel()
            return self._finish()
        finally:
            self.writer.release_allocation(self._lock_name())
            self.writer.release_runner(self.run_id)

    def _enter(self, state: RunState, reason: str = "") -> None:
        """Commit a state that lies ahead of the present one; a resumed run passes those behind it in silence."""
        if RUN_ORDER.index(state) > RUN_ORDER.index(self.state) or (state == self.state and reason):
            self.writer.transition(self.run_id, "run", state, reason)
            self.state = state

    async def _watch_requests(self) -> None:
        while True:
            for request in self.writer.pending_requests(self.run_id):
                if request.kind == "cancel":
                    self.cancelled = True
                    if self.context is not None:
                        self.context.cancelled = True
                    self.writer.complete_request(request.id)
            await asyncio.sleep(POLL_SECONDS)

    def give_up_if_cancelled(self) -> None:
        """Raise `CancelledRun` once a person asked to end the run."""
        if self.cancelled:
            raise CancelledRun("The run was cancelled.")

    def _lock_name(self) -> str:
        return f"{self.plan.provider.name}:{self.plan.provider.allocation or 'default'}"

    async def _drive(self) -> None:
        """Every stage in turn; whatever happens, the allocation is released at the end."""
        try:
            await self._wait_for_allocation()
            if self.state != "cleaning":
                self._check_folder()
                await self._until_collected()
        except CancelledRun as error:
            self._error = error
        except GlasshouseError as error:
            self._error = error
        except OSError as error:
            self._error = RunError(
                f"The operating system refused: {error.strerror or type(error).__name__}.",
                "Check the disk and the home folder.",
                code="os_error",
            )
        except Exception:
            # Whatever went wrong, the allocation is given back; the traceback goes to the runner's log.
            traceback.print_exc()
            self._error = RunError(
                "The runner met an error of its own.", f"See logs/runner-{self.run_id}.log.", code="internal_error"
            )
        self._enter("cleaning", self._error.message if self._error else "")
        try:
            await self.allocation.end()
        except GlasshouseError as error:
            self._error = self._error or error

    def _check_folder(self) -> None:
        if not self.folder.path.is_dir():
            raise RunError(
                "The private folder of this run is gone, and with it the keys to go on.",
                "Start the run again.",
                code="run_folder_missing",
            )

    async def _wait_for_allocation(self) -> None:
        while self.plan.provider.name in {"local", "static"} and not self.writer.claim_allocation(self._lock_name()):
            self._enter("queued", "another run has this allocation")
            self.give_up_if_cancelled()
            await asyncio.sleep(LOCK_SECONDS)

    async def _until_collected(self) -> None:
        self.give_up_if_cancelled()
        self._enter("allocating")
        staging = Staging(self.plan, self.folder, self.writer, self.journal, self.run_id)
        self.context = RunContext(
            self.run_id, self.plan, self.writer, self.reader, self.journal, self.ingest, self.folder, staging
        )
        prepared = asyncio.create_task(asyncio.to_thread(staging.prepare))
        try:
            lease = await self.allocation.have()
            self.give_up_if_cancelled()
            self._enter("connecting")
            async with self._link(lease) as link:
                await link.call(lambda session: session.mkdir(lease.root))
                self._enter("staging")
                await prepared
                self.give_up_if_cancelled()
                self.ingest.expected = staging.expected(lease)
                launched = await staging.deliver(link, lease)
                self._enter("running")
                follower = Follower(self.context, link, staging.run_dir(lease), launched, lease)
                await self._follow(self.context, follower, link, staging.run_dir(lease))
        finally:
            if not prepared.done():
                await asyncio.gather(prepared, return_exceptions=True)

    async def _follow(self, context: RunContext, follower: Follower, link: Reconnecting, run_dir: str) -> None:
        try:
            await follower.follow()
            self._enter("collecting")
            await collect(context, link, run_dir)
            await follower.close()
        finally:
            await follower.stop()

    def _link(self, lease: Lease) -> Reconnecting:
        async def opener() -> SshSession:
            return await self.provider.open_session(await self.provider.wait_ready(lease))

        return Reconnecting(opener)

    def _finish(self) -> FinalState:
        """Compute the row, store it with the final state, destroy the private folder."""
        view = self.reader.run(self.run_id)
        failed = [segment for segment in view.segments if segment.state != "done"]
        state: FinalState = "finished"
        reason = ""
        if self._error is not None:
            state = "cancelled" if self._error.code == "cancelled" else "failed"
            reason = f"{self._error.code}: {self._error.message}"
        elif self.cancelled:
            state, reason = "cancelled", "The run was cancelled."
        elif failed:
            state, reason = "failed", f"the {failed[0].kind} segment {failed[0].state}: {failed[0].reason}"
        facts = gather(self.reader, self.run_id)
        row, checks = build_row(facts, state=state, reason=reason)
        if self.context is not None and self.context.staging.is_prepared:
            self.writer.receipt(self.run_id, "run", sign_row(self.context, facts, row), replace=True)
        self.writer.finish(self.run_id, row, checks, state=state, reason=reason)
        self.folder.destroy()
        return state
