"""A limit on API calls per minute for all processes of a home, and a pause that all of them observe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from engine.providers.runpod.api import errors, shared_files
from engine.providers.runpod.api.protocol import GpuOffer, Order, Pod, PodApi, RateLimitedError
from engine.system.clock import boot_id, boot_seconds

FILE: Final = "api_calls.json"
_LOCK: Final = "api_calls.lock"
_PATIENCE: Final = 5.0
_TICK: Final = 1.0
_READS: Final = 0.75
OnWait = Callable[[float, str], None]


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """Times on the boot clock: of the recent calls, and of the end of a pause."""

    boot: str
    calls: tuple[float, ...] = ()
    pause_until: float = 0.0


class Pace:
    """Grants turns to call.

    Reads may use three quarters of a period's calls, `urgent` calls (create, terminate) all of them. While a caller
    waits, `on_wait` receives about once a second how many seconds remain and why. If the home cannot be written, this
    process keeps the limit on its own: a full disk must not prevent the termination of a pod.
    """

    def __init__(
        self, home: Path, calls_per_minute: int, on_wait: OnWait | None = None, *, period: float = 60.0
    ) -> None:
        self._folder = shared_files.folder_of(home)
        self._limit = calls_per_minute
        self._period = period
        self._own = _State(boot=boot_id())
        self._alone = False
        self.on_wait = on_wait

    @asynccontextmanager
    async def turn(self, *, urgent: bool = False, calls: int = 1) -> AsyncIterator[float]:
        """Wait for a turn of `calls` calls; a `RateLimitedError` from within becomes a pause for all processes.

        Yields the time on the boot clock at which the turn was granted.
        """
        while (wait := await self._take(urgent, calls)) is not None:
            if self.on_wait:
                self.on_wait(*wait)
            await asyncio.sleep(min(wait[0], _TICK))
        try:
            yield boot_seconds()
        except RateLimitedError as error:
            await self._pause(error.retry_after)
            raise

    def waiting_until(self) -> float | None:
        """The end, on the boot clock, of the pause that RunPod has requested; None without one."""
        until = self._read().pause_until
        return until if until > boot_seconds() else None

    def has_spare_calls(self) -> bool:
        """Whether less than a third of a period's calls has been used."""
        now = boot_seconds()
        return sum(now - self._period < at <= now for at in self._read().calls) < self._limit / 3

    async def _take(self, urgent: bool, calls: int) -> tuple[float, str] | None:
        """Take the turn and return None, or return how long to wait for it and why."""
        async with shared_files.locked(self._folder / _LOCK, _PATIENCE):
            state, now = self._read(), boot_seconds()
            if state.pause_until > now:
                return state.pause_until - now, "RunPod requests a pause"
            share = self._limit if urgent else max(1, int(self._limit * _READS))
            recent = tuple(at for at in state.calls if now - self._period < at <= now)
            over = len(recent) + min(calls, share) - share
            if over > 0:
                due = sorted(recent)[over - 1] + self._period
                return max(due - now, 0.01), f"at most {self._limit} calls to RunPod a minute"
            self._write(msgspec.structs.replace(state, calls=(*recent, *[now] * calls)))
            return None

    async def _pause(self, seconds: float) -> None:
        async with shared_files.locked(self._folder / _LOCK, _PATIENCE):
            state = self._read()
            until = max(state.pause_until, boot_seconds() + seconds)
            self._write(msgspec.structs.replace(state, pause_until=until))

    def _read(self) -> _State:
        """The shared state, or this process's own if it could not write; an impossibly long pause is ignored."""
        state = None if self._alone else shared_files.read_record(self._folder / FILE, _State)
        if state is None or state.boot != self._own.boot:
            return self._own
        if state.pause_until > boot_seconds() + errors.LONGEST_PAUSE:
            state = msgspec.structs.replace(state, pause_until=0.0)
        return state

    def _write(self, state: _State) -> None:
        self._own = state
        self._alone = not shared_files.write_record(self._folder / FILE, state)


class PacedApi:
    """A `PodApi` within the rate limit. `create_calls`: how many calls the creation of a pod takes."""

    def __init__(self, api: PodApi, pace: Pace, create_calls: int = 1) -> None:
        self._api = api
        self.pace = pace
        self._create_calls = create_calls

    @property
    def name(self) -> str:
        """See `PodApi`, as for the methods below."""
        return self._api.name

    def account(self, salt: bytes) -> str:
        """The implementation's."""
        return self._api.account(salt)

    async def list_pods(self) -> tuple[Pod, ...]:
        """In turn."""
        return (await self.list_begun())[1]

    async def list_begun(self) -> tuple[float, tuple[Pod, ...]]:
        """The listing, and the time on the boot clock at which it began, after the wait for its turn."""
        async with self.pace.turn() as began:
            return began, await self._api.list_pods()

    async def list_gpus(self) -> tuple[GpuOffer, ...]:
        """In turn."""
        async with self.pace.turn():
            return await self._api.list_gpus()

    async def create_pod(self, order: Order) -> str:
        """Urgent."""
        async with self.pace.turn(urgent=True, calls=self._create_calls):
            return await self._api.create_pod(order)

    async def terminate_pod(self, pod_id: str) -> bool:
        """Urgent."""
        async with self.pace.turn(urgent=True):
            return await self._api.terminate_pod(pod_id)

    async def fingerprints(self, pod_id: str) -> frozenset[str] | None:
        """In turn, and only while there are spare calls: trust rests on the pinned key, not on what was printed."""
        if not self.pace.has_spare_calls():
            return None
        async with self.pace.turn():
            return await self._api.fingerprints(pod_id)

    async def close(self) -> None:
        """The implementation's."""
        await self._api.close()
