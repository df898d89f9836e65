"""The local half of the dead-man's switch: one detached process per home that terminates overdue allocations.

It enforces the deadlines of rented allocations even when runner, console and terminal are gone, terminates kept ones
when their time is over, checks again for those whose request was never answered, retries the termination of leaked
ones, lists again for a while after an end, since a provider may list later what was gone, and exits when nothing is
rented any more.
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
from engine.allocations.returned import look_again
from engine.errors import GlasshouseError, StoreError
from engine.plan import RENTED
from engine.providers import provider_for
from engine.providers.protocol import Lease, LedgerEntry, Provider
from engine.providers.settings import Settings, load_settings
from engine.remote.session import SshSession
from engine.runner.abandon import abandon
from engine.runner.leases import lease_of, with_listing
from engine.runner.lost import Watched
from engine.runner.spawn import FOLDER, LOCK
from engine.store.home import has_database
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.system.clock import boot_seconds
from engine.system.text import visible
from engine.wire import utc_now

TICK_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 120.0
"""Between two attempts on an allocation that leaked or whose request was never answered."""
BEAT_SECONDS: Final = 300.0
IDLE_TICKS: Final = 6
LOCK_SECONDS: Final = 1.0
"""How long a starting sentinel retries the lock: `ensure_sentinel` holds it for a moment to check it."""


class Sentinel:
    """Reads the ledger every few seconds; calls a provider only when something is due."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._attempted_at: dict[str, float] = {}
        self._beat_at: dict[str, float] = {}
        self._work: dict[tuple[str, str], asyncio.Task[None]] = {}
        """Running tasks by kind and allocation, concurrent so that a slow one does not delay the others."""
        self._known: list[AllocationView] = []
        self._settings = Settings()
        self._asked: set[str] = set()
        """The allocations whose age the provider was asked for, after a restart of this machine."""
        self._is_useless = False

    @property
    def is_useless(self) -> bool:
        """True once the provider rejected the API key, or the key belongs to another account."""
        return self._is_useless

    async def watch(self) -> None:
        """Run until nothing rented is open or looked for, the home is gone, or the API key is useless.

        Once home or database is gone, what was last known to be rented is released: nobody else knows of it.
        """
        idle = 0
        watched = Watched(self._home)
        while not self._is_useless:
            if (error := watched.lost()) is not None:
                await self._abandon_all(error)
                return
            if not has_database(self._home):
                await asyncio.sleep(TICK_SECONDS)
                continue
            with _logged_errors():
                idle = 0 if self._check_all() else idle + 1
            if idle >= IDLE_TICKS:
                return
            await asyncio.sleep(TICK_SECONDS)

    async def _abandon_all(self, error: StoreError) -> None:
        for task in self._work.values():
            task.cancel()
        for name in sorted({one.provider for one in self._known}):
            held = [LedgerEntry(name=one.name, lease=lease_of(one)) for one in self._known if one.provider == name]
            await abandon("sentinel", self._home, error, held, name, self._settings)

    def _check_all(self) -> bool:
        with Reader(self._home) as reader:
            entries, ended = _open(reader), _looked_for(reader)
            self._known, self._settings = entries, load_settings(self._home)
            for entry in entries:
                with _logged_errors():
                    if self._is_due(reader, entry):
                        self._begin("end", entry, self._end(entry))
                    elif self._needs_age(entry):
                        self._begin("age", entry, self._ask_age(entry))
                    elif entry.ledger_state == "kept":
                        self._begin("beat", entry, self._beat(entry))
            with _logged_errors():
                self._look_again(ended)
        return bool(entries or ended) or any(not task.done() for task in self._work.values())

    def _look_again(self, ended: list[AllocationView]) -> None:
        """List for those that are gone, once for all that are due: a provider may list them, and bill them, again."""
        first = load_settings(self._home).runpod.limits.recheck
        for name in {one.provider for one in ended}:
            due = [one for one in ended if one.provider == name and one.recheck and one.recheck.due(first)]
            if due and self._may_try(f"look:{name}"):
                self._begin("look", due[0], self._look(name, due))

    async def _look(self, name: str, ended: list[AllocationView]) -> None:
        self._attempted_at[f"look:{name}"] = boot_seconds()
        provider = provider_for(name, self._home, load_settings(self._home))
        try:
            with Reader(self._home) as reader:
                if await look_again(self._home, reader, provider, ended):
                    _log(f"{name} lists again what was gone; it is terminated")
        finally:
            await provider.close()
        self._attempted_at.pop(f"look:{name}", None)

    def _needs_age(self, entry: AllocationView) -> bool:
        """Whether a deadline is unknown, since this machine was restarted, and the provider was not asked yet."""
        return entry.id not in self._asked and _is_unknown(entry) and self._may_try(f"age:{entry.id}")

    async def _ask_age(self, entry: AllocationView) -> None:
        """Count the deadlines again, by the age that the provider states."""
        self._attempted_at[f"age:{entry.id}"] = boot_seconds()
        provider = provider_for(entry.provider, self._home, load_settings(self._home))
        try:
            listing = await provider.reconcile([LedgerEntry(name=entry.name, lease=lease_of(entry))])
        finally:
            await provider.close()
        with Writer(self._home) as writer:
            for found in listing.ours:
                writer.allocation_known(entry.id, **with_listing(entry, found))
        self._asked.add(entry.id)

    def _may_try(self, key: str) -> bool:
        return boot_seconds() - self._attempted_at.get(key, float("-inf")) >= AGAIN_SECONDS

    def _begin(self, kind: str, entry: AllocationView, work: Coroutine[Any, Any, None]) -> None:
        """Start a task, unless the same one is still running."""
        earlier = self._work.get((kind, entry.id))
        if earlier is not None and not earlier.done():
            work.close()
            return
        self._work[kind, entry.id] = asyncio.create_task(_with_logged_errors(work))

    def _is_due(self, reader: Reader, entry: AllocationView) -> bool:
        if not self._may_try(entry.id):
            return False
        end, kept = entry.deadline, entry.keep_until
        if end is not None and end.is_over():
            return True
        if entry.ledger_state == "kept" and (kept is None or kept.is_over()):
            return True
        if in_use(reader, entry):
            return False
        if entry.id in self._asked and _is_unknown(entry):
            return True  # nobody can tell how much of its time is left: what no run uses is ended
        return entry.ledger_state != "kept" and _is_abandoned(reader, entry)

    async def _end(self, entry: AllocationView) -> None:
        self._attempted_at[entry.id] = boot_seconds()
        provider = provider_for(entry.provider, self._home, load_settings(self._home))
        try:
            with Writer(self._home) as writer, Reader(self._home) as reader:
                overdue = entry.deadline is not None and entry.deadline.is_over()
                ended = await end_one(self._home, writer, reader, provider, entry, overdue=overdue)
        finally:
            await provider.close()
        _log(f"{entry.name}: {ended.outcome}")
        # The API key may have changed since this process started: exit, so that the next sentinel uses the new one.
        self._is_useless = ended.reason.partition(":")[0] in {"account_differs", "api_key_rejected"}

    async def _beat(self, entry: AllocationView) -> None:
        """Touch the heartbeat file of a kept allocation, so that it does not terminate itself too early."""
        lease = lease_of(entry)
        due = boot_seconds() - self._beat_at.get(entry.id, float("-inf")) >= BEAT_SECONDS
        if lease is None or lease.heartbeat is None or not due:
            return
        self._beat_at[entry.id] = boot_seconds()
        provider = provider_for(entry.provider, self._home, load_settings(self._home))
        try:
            await _touch(provider, lease, lease.heartbeat)
        except GlasshouseError as error:
            _log(f"{entry.name}: no heartbeat: {error.code}")
        finally:
            await provider.close()


async def _touch(provider: Provider, lease: Lease, path: str) -> None:
    session: SshSession = await provider.open_session(await provider.wait_ready(lease))
    async with session:
        await session.run(["touch", "--", path])


async def _with_logged_errors(work: Coroutine[Any, Any, None]) -> None:
    with _logged_errors():
        await work


@contextlib.contextmanager
def _logged_errors() -> Iterator[None]:
    """Log any error and continue, so that no error disables the deadlines."""
    try:
        yield
    except GlasshouseError as error:
        _log(f"{error.code}: {error.message}")
    except Exception:
        traceback.print_exc()


def _is_abandoned(reader: Reader, entry: AllocationView) -> bool:
    """Whether an allocation that is not in use is to be terminated now.

    What an interrupted runner left behind is terminated by its resumption, or at its deadline; before there is a
    lease, at the deadline of the request (`intended_until`).
    """
    intended = entry.intended_until if entry.deadline is None else None
    if entry.ledger_state == "leaked" or (intended is not None and intended.is_over()):
        return True
    if entry.run_id is None:
        return entry.ledger_state in {"intent", "releasing"}
    return reader.run(entry.run_id).row is not None


def _open(reader: Reader) -> list[AllocationView]:
    return [one for one in reader.allocations(open_only=True) if one.provider in RENTED]


def _looked_for(reader: Reader) -> list[AllocationView]:
    return [one for one in reader.looked_for() if one.provider in RENTED]


def _is_unknown(entry: AllocationView) -> bool:
    """Whether how much time is left is unknown: this machine was restarted since that was decided."""
    moment = entry.keep_until if entry.ledger_state == "kept" else entry.deadline or entry.intended_until
    return moment is not None and moment.left() is None


def _log(text: str) -> None:
    sys.stderr.write(f"{utc_now()} {visible(text)}\n")
    sys.stderr.flush()


def main() -> int:
    """`python -m engine.allocations.sentinel --home DIR`; exits at once if another sentinel is running."""
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
        # An entry added after the last check saw the lock held, so no other sentinel was started for it.
        with Reader(home) as reader:
            if not _open(reader) and not _looked_for(reader):
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
