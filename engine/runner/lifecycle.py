"""The lifecycle of a run: each state is committed before it is acted upon, and each step is idempotent."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from engine.errors import GlasshouseError, RunError, StoreError
from engine.plan import is_of_earlier_version, load_stored_plan
from engine.providers import provider_for
from engine.providers.protocol import EmptyProof, Lease, Provider
from engine.providers.settings import load_settings
from engine.remote.reconnect import Reconnecting
from engine.remote.session import SshSession
from engine.runner.abandon import abandon
from engine.runner.allocation import Allocation, with_absolute_paths
from engine.runner.collect import collect
from engine.runner.context import RunContext
from engine.runner.exclusive import ExclusiveUse
from engine.runner.final_row import (
    FinalState,
    clear_folder,
    cost_of_run,
    destroy_leftovers,
    ending_of,
    settle_runs,
    store_row,
)
from engine.runner.folder import INPUTS, RunFolder
from engine.runner.follow import Follower
from engine.runner.ingest import Ingest
from engine.runner.journal import Journal
from engine.runner.lost import LOST, Watched, say_last
from engine.runner.sightings import Sightings
from engine.runner.staging import LAUNCHED, Staging
from engine.store.failure import Failure, Reason, failure_of
from engine.store.reader import Reader
from engine.store.views import FINAL_RUN_STATES, RunState
from engine.store.writer import Writer
from engine.wire import utc_now

RUN_ORDER: Final = ("queued", "allocating", "connecting", "staging", "running", "collecting", "cleaning")
POLL_SECONDS: Final = 0.25
LOCK_SECONDS: Final = 1.0
SEALING_SECONDS: Final = 5.0
PHASE_SECONDS: Final = 10.0
BUILDING: Final = "building the package"
_COUNT: Final = re.compile(r"\d+ s")


class CancelledRun(RunError):
    """The user requested to cancel the run."""

    default_code = "cancelled"


class Runner:
    """One run, from queued to a final state."""

    def __init__(self, home: Path, run_id: str) -> None:
        self.home = home
        self.run_id = run_id
        self.writer = Writer(home)
        self.reader = Reader(home)
        stored = self.reader.run(run_id).plan
        self.plan = load_stored_plan(stored)
        self._outdated = is_of_earlier_version(stored)
        self.state: RunState = "queued"
        self.folder = RunFolder(home, run_id)
        self.settings = load_settings(home)
        self.provider: Provider = provider_for(self.plan.provider.name, home, self.settings)
        self.exclusive = ExclusiveUse(home, self.writer, self.reader, self.provider, self.plan, self.settings, run_id)
        self.cancelled = False
        self.context: RunContext | None = None
        self._failure: Failure | None = None
        self._proof: EmptyProof | None = None
        self._phase = "", 0.0
        self._lost: StoreError | None = None
        self._work: asyncio.Task[None] | None = None
        self._released_early: asyncio.Task[None] | None = None

    async def execute(self) -> str:
        """Claim the run and bring it to its end; returns the final state.

        Raises `StoreError` (`home_gone`, `database_gone`) once what was acquired is released.
        """
        self.writer.claim_runner(self.run_id)
        self.watched = Watched(self.home, self.folder.path)
        try:
            # Read under the lock: another runner may have advanced the run until now.
            summary = self.reader.run(self.run_id).summary
            self.state = summary.state
            if self.state in FINAL_RUN_STATES:
                return self.state
            if self.state == "cleaning":
                self._failure = summary.error or failure_of(summary.reason)
            self._store_delegation()
            self.journal = Journal(self.writer, self.reader, self.run_id)
            self.ingest = Ingest(self.writer, self.reader, self.run_id)
            self.allocation = Allocation(
                self.home,
                self.writer,
                self.reader,
                self.provider,
                self.plan,
                self.settings,
                self.run_id,
                self.journal,
                self._wait_reason,
            )
            self._check_for_cancel()
            watch = asyncio.create_task(self._watch_requests())
            try:
                await self._drive()
            finally:
                watch.cancel()
                await self.provider.close()
            await self._until_certain()
            if self._is_lost:
                await self._abandon()
            self._update_earlier_rows()
            final = self._finish()
            destroy_leftovers(self.home, self.reader)
            return final
        finally:
            with contextlib.suppress(StoreError) if self._is_lost else contextlib.nullcontext():
                self.exclusive.release_lock()
                self.writer.release_runner(self.run_id)

    @property
    def _is_lost(self) -> bool:
        """True once nothing can be stored any more."""
        return self._lost is not None and self._lost.code in LOST

    def _check_home(self) -> None:
        """Stop the work once home, database or run folder is gone; what is rented is released at once."""
        error = None if self._is_lost else self.watched.lost()
        if error is None or (self._lost is not None and error.code not in LOST):
            return
        self._lost = error
        if self._is_lost and self.allocation.is_rented and self.allocation.held and self.allocation.held.lease:
            self._released_early = asyncio.create_task(self._release_held(error))
        if self._work is not None:
            self._work.cancel()

    async def _unless_lost(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = asyncio.create_task(work)
        try:
            await self._work
        except asyncio.CancelledError:
            if self._lost is None:
                raise
            raise self._lost from None

    async def _abandon(self) -> None:
        """Release what is still held and raise why; the row of this run cannot be stored anywhere."""
        error = self._lost
        if error is None:
            return
        if self._released_early is not None:
            await self._released_early
        elif self.allocation.held is not None:
            await self._release_held(error)
        else:
            say_last(f"run {self.run_id}: {error.code}: {error.message} It holds no allocation: released.")
        raise error

    async def _release_held(self, error: StoreError) -> None:
        held = self.allocation.held
        await abandon(
            f"run {self.run_id}", self.home, error, [held] if held else [], self.plan.provider.name, self.settings
        )

    def _enter(self, state: RunState, reason: Reason = "") -> None:
        """Commit a state that comes after the present one; a resumed run skips the earlier ones."""
        if RUN_ORDER.index(state) > RUN_ORDER.index(self.state) or (state == self.state and reason):
            self.writer.transition(self.run_id, "run", state, reason)
            self.state = state

    async def _watch_requests(self) -> None:
        while True:
            self._check_home()
            try:
                self._check_for_cancel()
            except StoreError as error:
                # A busy or full store must not stop the run from seeing later requests.
                sys.stderr.write(f"{utc_now()} requests cannot be read: {error.code}: {error.message}\n")
            await asyncio.sleep(POLL_SECONDS)

    def _check_for_cancel(self) -> None:
        """Check for a request to cancel the run. The request stays open until the run has ended."""
        if not self.cancelled and any(one.kind == "cancel" for one in self.writer.pending_requests(self.run_id)):
            self.cancelled = True
            if self.context is not None:
                self.context.cancelled = True

    def _store_delegation(self) -> None:
        """Store the operator's delegation, in case the process that started the run died before doing so."""
        delegation = None
        with contextlib.suppress(ValueError):  # a damaged folder fails the run later on, when it can be cleaned up
            delegation = (self.folder.read_json(INPUTS) or {}).get("delegation")
        if delegation is not None and "delegation" not in self.reader.receipts(self.run_id):
            self.writer.receipt(self.run_id, "delegation", delegation)

    def _update_earlier_rows(self) -> None:
        """Update the rows of the earlier runs on this allocation, now that it is released."""
        entry = self.allocation.entry()
        if entry is not None and self._proof is not None:
            settle_runs(self.home, self.writer, self.reader, entry, self._proof)

    def raise_if_cancelled(self) -> None:
        """Raise `CancelledRun` once the user requested to cancel the run."""
        if self.cancelled:
            raise CancelledRun("The run was cancelled.")

    def _raise_if_cancelled_before_launch(self) -> None:
        """As above; a launched run is not interrupted here, so that it can stop and wipe by itself."""
        if not self._is_launched():
            self.raise_if_cancelled()

    async def _drive(self) -> None:
        """Every stage in turn; whatever happens, the allocation is released at the end."""
        try:
            await self._unless_lost(self._until_cleaning())
        except Exception as error:
            self._failure = self._failure_of(error)
        await self._until_certain()
        if self._is_lost:
            return
        try:
            self.ingest.settle()
            # With the failure, so that a runner that takes over from here ends the run with the same one.
            self._enter("cleaning", self._failure or "")
        except Exception as error:  # whatever failed, the allocation is released below
            self._failure = self._failure or self._failure_of(error)
        try:
            if self.allocation.entry() is None:
                await self.exclusive.release_host()
            self._proof = await self.allocation.end(self._keep_minutes())
        except Exception as error:
            self._failure = self._failure or self._failure_of(error)

    async def _until_certain(self) -> None:
        """Whatever failed, it may have failed because the home is being removed: then that is the reason."""
        while not self._is_lost and self.watched.is_doubtful:
            self._check_home()
            if self._lost is not None:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _until_cleaning(self) -> None:
        if self.state == "cleaning":
            await self._wait_for_allocation()
        elif self._outdated:
            raise RunError(
                "This run was started by an earlier version of glasshouse, which this one cannot continue.",
                "What it had rented is released. Start the run again with `glasshouse run`.",
                code="run_of_earlier_version",
            )
        else:
            await self._until_collected(await self._ready_to_allocate())

    def _failure_of(self, error: Exception) -> Failure:
        """The error as it is stored; the traceback of an unexpected one goes to the runner's log."""
        if isinstance(error, GlasshouseError):
            return Failure.of(error)
        if isinstance(error, OSError):
            where = "" if error.filename is None else f" at {error.filename}"
            reported: GlasshouseError = RunError(
                f"The operating system reported an error{where}: {error.strerror or type(error).__name__}.",
                "Check the free disk space and the permissions there and of the home folder.",
                code="os_error",
            )
        else:
            traceback.print_exception(error)
            reported = RunError(
                f"The runner had an internal error ({type(error).__name__}).",
                f"See {self.home / 'logs'}/runner-{self.run_id}.log, and report it with that file.",
                code="internal_error",
            )
        reported.__cause__ = error
        return Failure.of(reported)

    def _check_folder(self) -> None:
        if not self.folder.path.is_dir():
            raise RunError(
                "The private folder of this run is missing, and with it the keys that the run needs to continue.",
                "Start the run again.",
                code="run_folder_missing",
            )

    async def _wait_for_allocation(self) -> None:
        """Wait until the machine is free; a run whose supervisor is already on it does not wait."""
        while True:
            if self.state == "cleaning" or self._is_launched():
                if self.plan.provider.kind.exclusive:
                    self.exclusive.take_lock()
                return
            reason = await self.exclusive.take()
            if reason is None:
                return
            self._enter("queued", reason)
            self.raise_if_cancelled()
            await asyncio.sleep(LOCK_SECONDS)

    def _is_launched(self) -> bool:
        return self.folder.read(LAUNCHED) is not None

    async def _ready_to_allocate(self) -> RunContext:
        """Build the package and wait for the machine: what is refused without an allocation is refused before there is
        one.

        On this machine the package is built when no other run is timed here; elsewhere it is ready when the machine is.
        """
        self._raise_if_cancelled_before_launch()
        self._check_folder()
        staging = Staging(self.plan, self.folder, self.writer, self.journal, self.run_id)
        self.context = context = RunContext(
            self.run_id, self.plan, self.writer, self.reader, self.journal, self.ingest, self.folder, staging
        )
        context.cancelled = self.cancelled
        if not self.plan.provider.kind.on_this_machine:
            await self._build(staging)
        await self._wait_for_allocation()
        self._raise_if_cancelled_before_launch()
        if self.plan.provider.kind.on_this_machine:
            await self._build(staging)
        return context

    async def _build(self, staging: Staging) -> None:
        building = asyncio.create_task(asyncio.to_thread(staging.prepare, self.settings))
        await self._until_prepared(staging, building)
        self._raise_if_cancelled_before_launch()

    async def _until_collected(self, context: RunContext) -> None:
        staging = context.staging
        self._enter("allocating")
        lease = await self._unless_cancelled(self.allocation.ensure())
        self._raise_if_cancelled_before_launch()
        self._enter("connecting")
        async with self._link(lease) as link:
            lease = self.allocation.save_lease(await link.call(lambda session: with_absolute_paths(session, lease)))
            root = lease.root
            await link.call(lambda session: session.mkdir(root))
            self._enter("staging")
            async with self.exclusive.renewed(link, lease):
                lease = await staging.make_ready(link, lease, self._environment_phase)
                self._raise_if_cancelled_before_launch()
                self.ingest.expected = staging.expected(lease)
                if not self._is_launched():
                    Sightings(self.writer, self.journal, self.run_id).nothing_yet()
                launched = await staging.deliver(link, lease)
            self._enter("running")
            follower = Follower(context, link, staging.run_dir(lease), launched, lease)
            await self._follow(context, follower, link, staging.run_dir(lease))

    async def _until_prepared(self, staging: Staging, prepared: asyncio.Task[None]) -> None:
        """Wait for the package; the run's reason says that it is built, and shows the progress of the sealing."""
        shown, timeout = "", 0.0
        while not (await asyncio.wait({prepared}, timeout=timeout))[0]:
            timeout = SEALING_SECONDS
            phase = staging.sealing or BUILDING
            if phase != shown and not staging.is_launched:
                self._enter(self.state, phase)
                shown = phase
        await prepared

    async def _follow(self, context: RunContext, follower: Follower, link: Reconnecting, run_dir: str) -> None:
        try:
            await follower.follow()
            self._enter("collecting")
            await collect(context, link, run_dir)
            await follower.close()
        finally:
            await follower.stop()

    def _wait_reason(self, phase: str) -> None:
        """What the run waits for, shown with its state; a changing countdown is recorded every few seconds only."""
        label = _COUNT.sub("", phase)
        if label != self._phase[0] or time.monotonic() - self._phase[1] > PHASE_SECONDS:
            self._phase = label, time.monotonic()
            self._enter("allocating", phase)

    def _environment_phase(self, phase: str) -> None:
        """The progress of the environment, shown with the run's state; a cancellation interrupts the installation."""
        self._raise_if_cancelled_before_launch()
        self._enter("staging", phase)

    async def _unless_cancelled(self, acquisition: Coroutine[Any, Any, Lease]) -> Lease:
        """The lease, unless the run is cancelled before: then the acquisition is cancelled, and has ended on return."""
        if self._is_launched():
            return await acquisition
        task = asyncio.create_task(acquisition)
        while not task.done() and not self.cancelled:
            await asyncio.wait({task}, timeout=POLL_SECONDS)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled():
            self.raise_if_cancelled()
        return await task

    def _keep_minutes(self) -> int | None:
        """For how long to keep the allocation after this run; None to release it."""
        if not self.allocation.is_rented or self.cancelled or self._failure is not None:
            return None
        requests = [one for one in self.writer.pending_requests(self.run_id) if one.kind == "keep"]
        minutes = requests[-1].detail.get("minutes") if requests else None
        return int(minutes) if minutes else self.plan.provider.keep_for

    def _link(self, lease: Lease) -> Reconnecting:
        async def opener() -> SshSession:
            return await self.provider.open_session(await self.provider.wait_ready(lease))

        return Reconnecting(opener)

    def _finish(self) -> FinalState:
        """Store the row with the final state, complete open requests, clear the private folder."""
        view = self.reader.run(self.run_id)
        state, reason = ending_of(view, self._failure, cancelled=self.cancelled)
        cost = cost_of_run(self.reader, self.run_id, self.allocation.entry())
        store_row(self.writer, self.reader, self.run_id, self._staging(), state=state, reason=reason, cost_usd=cost)
        for request in self.writer.pending_requests(self.run_id):
            self.writer.complete_request(request.id)
        clear_folder(self.folder, self.reader)
        return state

    def _staging(self) -> Staging | None:
        """What was staged, also for a runner that only cleaned up; None without the run's keys."""
        if self.context is not None:
            return self.context.staging
        try:
            return Staging(self.plan, self.folder, self.writer, self.journal, self.run_id)
        except GlasshouseError:
            return None
