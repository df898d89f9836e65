"""The lock on a host: two runs never time each other there, also from two homes or two operators of one login.

A process on the host holds it, so that it outlives every link and ends with the run: see `lock_holder.py`. Two logins
with two roots do not see each other; give them one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import RemoteError, WireError
from engine.wire import parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.remote.session import SshSession
    from engine.remote.tail import Caller

LEASE_SECONDS: Final = 900.0
"""How long a holder waits for its runner before there is a supervisor: as long as a runner looks for a lost link."""
RENEW_SECONDS: Final = 60.0
_UNSAFE: Final = 6  # as in lock_holder.py
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The host is this run's. `since` in UTC by the host's clock."""

    since: str


class Busy(msgspec.Struct, frozen=True, kw_only=True):
    """Another run has the host: its id and since when, both empty where the host does not tell."""

    by: str
    since: str

    @property
    def reason(self) -> str:
        """For the run that waits."""
        since = f" since {self.since}" if self.since else ""
        return f"run {self.by or 'of somebody else'} has this host{since}"


async def acquire_lock(
    session: SshSession, root: str, run_id: str, python: str, *, lease: float = LEASE_SECONDS
) -> Held | Busy:
    """Take the host for a run, or renew what the run has already; bears repeating.

    Raises `RemoteError`: `host_lock_failed` and the link's codes.
    """
    told = await _ask(session, python, "take", root, run_id, str(lease))
    if told.get("held") is True and told.get("run") == run_id:
        return Held(since=_known(_TIME, told.get("since")))
    if told.get("held") is False:
        return Busy(by=_known(_NAME, told.get("run")), since=_known(_TIME, told.get("since")))
    raise _failed("it gave no clear answer")


async def free_lock(session: SshSession, root: str, run_id: str, python: str) -> None:
    """Let go of the host at once; not having it is no error. Raises as `acquire_lock`."""
    await _ask(session, python, "free", root, run_id)


@contextlib.asynccontextmanager
async def renewed(source: Caller, root: str, run_id: str, python: str) -> AsyncIterator[None]:
    """Renew the run's lock until the context ends: for the time before its supervisor is launched."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with contextlib.suppress(RemoteError):  # the work beside it meets the same link and tells
                await source.call(lambda session: acquire_lock(session, root, run_id, python))

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _ask(session: SshSession, python: str, *words: str) -> dict[str, object]:
    text = Path(__file__).with_name("programs").joinpath("lock_holder.py").read_text(encoding="utf-8")
    told = await session.run([python, "-I", "-S", "-B", "-c", text, *words])
    try:
        answer = parse(told.stdout)
    except WireError as error:
        raise _failed(f"exit {told.exit_status}") from error
    if told.exit_status == _UNSAFE:
        raise RemoteError(
            f"Other users of the host may write to {words[1]}, where runs would lie.",
            "Make it the login's own with chmod 700, or choose another root.",
            code="host_lock_failed",
        )
    if told.exit_status != 0 or not isinstance(answer, dict) or "error" in answer:
        raise _failed(f"exit {told.exit_status}")
    return answer


def _known(form: re.Pattern[str], value: object) -> str:
    return value if isinstance(value, str) and form.fullmatch(value) else ""


def _failed(why: str) -> RemoteError:
    return RemoteError(
        f"The lock on the host could not be taken: {why}.",
        "Look at the host's Python and at the root folder's owner.",
        code="host_lock_failed",
    )
