"""The local half of the dead-man's switch: one detached process a home that ends what is overdue.

It holds the deadlines of rented allocations whatever becomes of runner, console and terminal, ends kept ones when
their time is over, looks again for those that were asked for and never answered, tries again to end what leaked, and
goes when nothing is rented any more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import sys
import time
import traceback
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

from engine.allocations.cleanup import end_one, in_use
from engine.errors import GlasshouseError
from engine.plan import RENTED
from engine.providers import provider_for
from engine.providers.protocol import Lease, Provider
from engine.providers.settings import load_settings
from engine.remote.session import SshSession
from engine.runner.leases import lease_of
from engine.runner.spawn import FOLDER, LOCK
from engine.store.home import has_database
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.wire import utc_now

TICK_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 120.0
"""Between two attempts on one allocation that leaked or was never answered."""
BEAT_SECONDS: Final = 300.0
IDLE_TICKS: Final = 6
LOCK_SECONDS: Final = 1.0
"""How long one that starts tries for the lock: somebody may be looking whether it is held."""


class Sentinel:
    """Looks at the ledger every few seconds; asks a provider only when something is due."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._tried: dict[str, float] = {}
        self._beaten: dict[str, float] = {}
        self._work: dict[tuple[str, str], asyncio.Task[None]] = {}
        """What goes on, by its kind and allocation: one that takes long keeps no other waiting."""
        self._is_useless = False

    @property
    def is_useless(self) -> bool:
        """True once its API key was of no use."""
        return self._is_useless

    async def watch(self) -> None:
        """Until nothing rented is open, the home is no more, or its API key is of no use."""
        idle = 0
        while has_database(self._home) and not self._is_useless:
            with _told():
                idle = 0 if self._look() else idle + 1
            if idle >= IDLE_TICKS:
                return
            await asyncio.sleep(TICK_SECONDS)

    def _look(self) -> bool:
        with Reader(self._home) as reader:
            entries = _open(reader)
            for entry in entries:
                with _told():
                    if self._is_due(reader, entry):
                        self._begin("end", entry, self._end(entry))
                    elif entry.ledger_state == "kept":
                        self._begin("beat", entry, self._beat(entry))
        return bool(entries) or any(not task.done() for task in self._work.values())

    def _begin(self, kind: str, entry: AllocationView, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside everything else, unless it is being done."""
        earlier = self._work.get((kind, entry.id))
        if earlier is not None and not earlier.done():
            work.close()
            return
        self._work[kind, entry.id] = asyncio.create_task(_telling(work))

    def _is_due(self, reader: Reader, entry: AllocationView) -> bool:
        if time.monotonic() - self._tried.get(entry.id, float("-inf")) < AGAIN_SECONDS:
            return False
        end, kept = entry.deadline, entry.keep_until
        if end is not None and end.left() <= 0:
            return True
        if entry.ledger_state == "kept":
            return kept is None or kept.left() <= 0
        return not in_use(reader, entry) and _is_abandoned(reader, entry)

    async def _end(self, entry: AllocationView) -> None:
        self._tried[entry.id] = time.monotonic()
        provider = provider_for(entry.provider, self._home, load_settings(self._home))
        try:
            with Writer(self._home) as writer, Reader(self._home) as reader:
                overdue = entry.deadline is not None and entry.deadline.left() <= 0
                ended = await end_one(self._home, writer, reader, provider, entry, overdue=overdue)
        finally:
            await provider.close()
        _say(f"{entry.name}: {ended.outcome}")
        # Another key was set since this process began: whoever is started next may have it.
        self._is_useless = ended.reason.partition(":")[0] in {"account_differs", "api_key_rejected"}

    async def _beat(self, entry: AllocationView) -> None:
        """A kept allocation hears that somebody is there until its time is over."""
        lease = lease_of(entry)
        due = time.monotonic() - self._beaten.get(entry.id, float("-inf")) >= BEAT_SECONDS
        if lease is None or lease.heartbeat is None or not due:
            return
        self._beaten[entry.id] = time.monotonic()
        provider = provider_for(entry.provider, self._home, load_settings(self._home))
        try:
            await _touch(provider, lease, lease.heartbeat)
        except GlasshouseError as error:
            _say(f"{entry.name}: no heartbeat: {error.code}")
        finally:
            await provider.close()


async def _touch(provider: Provider, lease: Lease, path: str) -> None:
    session: SshSession = await provider.open_session(await provider.wait_ready(lease))
    async with session:
        await session.run(["touch", "--", path])


async def _telling(work: Coroutine[Any, Any, None]) -> None:
    with _told():
        await work


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong is told, and the deadlines stand."""
    try:
        yield
    except GlasshouseError as error:
        _say(f"{error.code}: {error.message}")
    except Exception:
        traceback.print_exc()


def _is_abandoned(reader: Reader, entry: AllocationView) -> bool:
    """Whether one that nobody is at work on is to be ended now.

    What a runner left half done is ended by its resumption, or by its deadline; before there is a lease, by that of
    the asking.
    """
    intended = entry.intended_until if entry.deadline is None else None
    if entry.ledger_state == "leaked" or (intended is not None and intended.left() <= 0):
        return True
    if entry.run_id is None:
        return entry.ledger_state in {"intent", "releasing"}
    return reader.run(entry.run_id).row is not None


def _open(reader: Reader) -> list[AllocationView]:
    return [one for one in reader.allocations(open_only=True) if one.provider in RENTED]


def _say(text: str) -> None:
    sys.stderr.write(f"{utc_now()} {text}\n")
    sys.stderr.flush()


def main() -> int:
    """`python -m engine.allocations.sentinel --home DIR`; ends at once where another one runs."""
    parser = argparse.ArgumentParser("engine.allocations.sentinel")
    parser.add_argument("--home", type=Path, required=True)
    home: Path = parser.parse_args().home
    fd = os.open(home / FOLDER / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while _locked(fd):
        sentinel = Sentinel(home)
        asyncio.run(sentinel.watch())
        fcntl.flock(fd, fcntl.LOCK_UN)
        if sentinel.is_useless or not has_database(home):
            break
        # What was entered after the last look found the lock held, and started no other one.
        with Reader(home) as reader:
            if not _open(reader):
                break
    os.close(fd)
    return 0


def _locked(fd: int) -> bool:
    until = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < until:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


if __name__ == "__main__":
    raise SystemExit(main())
