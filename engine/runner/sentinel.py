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
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Final

from engine.errors import GlasshouseError
from engine.providers import provider_for
from engine.providers.protocol import Lease, Provider
from engine.remote.session import SshSession
from engine.runner.allocation import RENTED
from engine.runner.folder import LOGS
from engine.runner.leases import ends_at, kept_until, lease_of
from engine.runner.tending import end_one, in_use
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.wire import utc_now

FOLDER: Final = "allocations"
LOCK: Final = "sentinel.lock"
LOG: Final = "sentinel.log"
TICK_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 120.0
"""Between two attempts on one allocation that leaked or was never answered."""
BEAT_SECONDS: Final = 300.0
IDLE_TICKS: Final = 6


def ensure_sentinel(home: Path) -> None:
    """Start this home's sentinel where it does not run; called before anything is rented."""
    folder = home / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    (home / LOGS).mkdir(mode=0o700, exist_ok=True)
    fd = os.open(home / LOGS / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(fd, "ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "engine.runner.sentinel", "--home", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )


class Sentinel:
    """Looks at the ledger every few seconds; asks a provider only when something is due."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._tried: dict[str, float] = {}
        self._beaten: dict[str, float] = {}

    async def watch(self) -> None:
        """Until nothing rented is open."""
        idle = 0
        while idle < IDLE_TICKS:
            try:
                idle = 0 if await self._look() else idle + 1
            except GlasshouseError as error:
                _say(f"{error.code}: {error.message}")
            except Exception:
                # Whatever it was, the deadlines stand.
                traceback.print_exc()
            await asyncio.sleep(TICK_SECONDS)

    async def _look(self) -> bool:
        with Reader(self._home) as reader:
            entries = [one for one in reader.allocations(open_only=True) if one.provider in RENTED]
            for entry in entries:
                if self._is_due(reader, entry):
                    await self._end(reader, entry)
                elif entry.ledger_state == "kept":
                    await self._beat(reader, entry)
        return bool(entries)

    def _is_due(self, reader: Reader, entry: AllocationView) -> bool:
        if time.monotonic() - self._tried.get(entry.id, float("-inf")) < AGAIN_SECONDS:
            return False
        end, kept = ends_at(reader, entry.id), kept_until(reader, entry.id)
        if end is not None and end.left() <= 0:
            return True
        if entry.ledger_state == "kept":
            return kept is None or kept.left() <= 0
        if in_use(reader, entry):
            return False
        # What a runner left half done is ended by its resumption, or by its deadline.
        ended_run = entry.run_id is None or reader.run(entry.run_id).row is not None
        return entry.ledger_state == "leaked" or (ended_run and entry.ledger_state in {"intent", "releasing"})

    async def _end(self, reader: Reader, entry: AllocationView) -> None:
        self._tried[entry.id] = time.monotonic()
        provider = provider_for(entry.provider, self._home)
        try:
            with Writer(self._home) as writer:
                ended = await end_one(self._home, writer, reader, provider, entry)
        finally:
            await provider.close()
        _say(f"{entry.name}: {ended.outcome}")

    async def _beat(self, reader: Reader, entry: AllocationView) -> None:
        """A kept allocation hears that somebody is there until its time is over."""
        lease = lease_of(reader, entry.id)
        due = time.monotonic() - self._beaten.get(entry.id, float("-inf")) >= BEAT_SECONDS
        if lease is None or lease.heartbeat is None or not due:
            return
        self._beaten[entry.id] = time.monotonic()
        provider = provider_for(entry.provider, self._home)
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


def _say(text: str) -> None:
    sys.stderr.write(f"{utc_now()} {text}\n")
    sys.stderr.flush()


def main() -> int:
    """`python -m engine.runner.sentinel --home DIR`; ends at once where another one runs."""
    parser = argparse.ArgumentParser("engine.runner.sentinel")
    parser.add_argument("--home", type=Path, required=True)
    home: Path = parser.parse_args().home
    fd = os.open(home / FOLDER / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        asyncio.run(Sentinel(home).watch())
    os.close(fd)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
