"""The lock on a host: two runs never disturb each other's timing, even from two homes or two operators of one login.

A process on the host holds it, so that it outlives every link and ends with the run: see `programs/lock_holder.py`.
Runs below different roots do not exclude each other, so everyone who uses a host must share one login and one root.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import RemoteError, WireError
from engine.remote.failures import quoted
from engine.wire import parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.remote.session import SshSession
    from engine.remote.tail import Caller

LEASE_SECONDS: Final = 900.0
"""How long a holder waits for a renewal before there is a supervisor: as long as a runner tries to reconnect."""
RENEW_SECONDS: Final = 60.0
_UNSAFE: Final = 6  # as in lock_holder.py
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


_HINTS: Final = {
    "no space": "Free space there, or set `root` of the host in config.toml to a folder on another disk.",
    "quota": "The login's quota is used up: free space, or set `root` in config.toml to a folder on another disk.",
    "read-only": "Set `root` of the host in config.toml to a folder on a disk that is mounted for writing.",
    "permission": "Set `root` of the host in config.toml to a folder that the user may write to.",
    "no locks": "Its file system has no locks: set `root` of the host in config.toml to a folder on a local disk.",
    "stale": "Its network file system does not answer: mount it again, or set `root` to a folder on a local disk.",
}
"""What to do about an error of the host's system, by a part of its text in lower case."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """This run holds the lock. `since` in UTC by the host's clock."""

    since: str


class Busy(msgspec.Struct, frozen=True, kw_only=True):
    """Another run holds the lock: its id and since when, both empty if the host does not report them."""

    by: str
    since: str

    @property
    def reason(self) -> str:
        """A phrase for the run that waits."""
        since = f" since {self.since}" if self.since else ""
        return f"run {self.by or 'of somebody else'} has this host{since}"


async def acquire_lock(
    session: SshSession, root: str, run_id: str, python: str, *, lease: float = LEASE_SECONDS
) -> Held | Busy:
    """Take the host for a run, or renew the lock that the run already holds; idempotent.

    Raises `RemoteError`: `host_lock_failed` and the link's codes.
    """
    answer = await _request(session, python, "take", root, run_id, str(lease))
    if answer.get("held") is True and answer.get("run") == run_id:
        return Held(since=_matching(_TIME, answer.get("since")))
    if answer.get("held") is False:
        return Busy(by=_matching(_NAME, answer.get("run")), since=_matching(_TIME, answer.get("since")))
    raise _failed("its answer is not valid")


async def free_lock(session: SshSession, root: str, run_id: str, python: str) -> None:
    """Release the lock at once; no error if the run does not hold it. Raises as `acquire_lock`."""
    await _request(session, python, "free", root, run_id)


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A lock that was tried out in the folder `at`: free bytes there, and who holds the host now, if anybody."""

    at: str
    free: int
    noexec: bool
    busy: Busy | None


async def try_lock(session: SshSession, root: str, python: str) -> Tried:
    """Whether a run could take the lock: it is tried out where the root is or would be, and nothing is left there.

    Raises as `acquire_lock`.
    """
    answer = await _request(session, python, "try", root, "")
    free, run = answer.get("free"), _matching(_NAME, answer.get("run"))
    if answer.get("tried") is not True or not isinstance(free, int) or free < 0:
        raise _failed("its answer is not valid")
    return Tried(
        at=quoted(str(answer.get("at", "")), 200),
        free=free,
        noexec=answer.get("noexec") is True,
        busy=Busy(by=run, since=_matching(_TIME, answer.get("since"))) if run else None,
    )


@contextlib.asynccontextmanager
async def renewed(source: Caller, root: str, run_id: str, python: str) -> AsyncIterator[None]:
    """Keep renewing the run's lock during the context: for the time before its supervisor is launched."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with contextlib.suppress(RemoteError):  # the work in the context uses the same link and reports the error
                await source.call(lambda session: acquire_lock(session, root, run_id, python))

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _request(session: SshSession, python: str, *words: str) -> dict[str, object]:
    text = Path(__file__).with_name("programs").joinpath("lock_holder.py").read_text(encoding="utf-8")
    result = await session.run([python, "-I", "-S", "-B", "-c", text, *words])
    try:
        answer = parse(result.stdout)
    except WireError as error:
        said = quoted(result.stderr.strip().rpartition(b"\n")[2], 160) or quoted(result.stdout, 160)
        raise _failed(
            f"exit status {result.exit_status}" + (f'. The host\'s text: "{said}"' if said else "")
        ) from error
    if result.exit_status == _UNSAFE:
        raise RemoteError(
            f"Other users of the host can write to {words[1]}, the folder for runs.",
            "Make it private with chmod 700, or choose another root.",
            code="host_lock_failed",
        )
    reported = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(reported, str):
        reason = quoted(reported, 120)
        hint = next((hint for part, hint in _HINTS.items() if part in reason.lower()), "")
        raise _failed(f"{reason[:1].lower()}{reason[1:]}, at {words[1]}", hint)
    if result.exit_status != 0 or not isinstance(answer, dict):
        raise _failed(f"exit status {result.exit_status}")
    return answer


def _matching(form: re.Pattern[str], value: object) -> str:
    """`value` if it is a string of this form, else an empty string: the host is not trusted."""
    return value if isinstance(value, str) and form.fullmatch(value) else ""


def _failed(why: str, hint: str = "") -> RemoteError:
    return RemoteError(
        f"The lock on the host could not be taken: {why}.",
        hint or "Check the host's Python and the owner of the root folder.",
        code="host_lock_failed",
    )
