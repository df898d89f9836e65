"""An allocation's login in parts, for `doctor`: commands, home, SFTP, Python, lock. Each part leaves nothing behind."""

from __future__ import annotations

import posixpath
import secrets
from typing import TYPE_CHECKING, Final, Literal, Protocol

import asyncssh
import msgspec

from engine.errors import GlasshouseError, RemoteError
from engine.remote.failures import noexec, translated
from engine.remote.host_lock import try_lock
from engine.remote.login import check_login, check_python, home_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from engine.remote.session import SshSession

TRIAL: Final = b"glasshouse" * 400


class Place(Protocol):
    """The part of a lease or of a host's settings that is needed here."""

    @property
    def root(self) -> str: ...
    @property
    def python(self) -> str: ...
    @property
    def environment(self) -> Literal["own", "image", "lock"]: ...


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part: what was seen, or the error's sentence, code and hint."""

    name: str
    passed: bool
    detail: str
    code: str = ""
    hint: str = ""


async def examine(session: SshSession, place: Place) -> AsyncIterator[Part]:
    """Try every part in turn; a part that fails does not keep the others from being tried, except the commands."""
    for name, check in PARTS:
        try:
            yield Part(name=name, passed=True, detail=await check(session, place))
        except GlasshouseError as error:
            yield Part(name=name, passed=False, detail=error.message, code=error.code, hint=error.hint)
            if name == "commands":
                return  # nothing after them could be told apart from their fault


async def _commands(session: SshSession, place: Place) -> str:
    await check_login(session)
    return "commands answer, and nothing else is printed"


async def _home(session: SshSession, place: Place) -> str:
    return f"runs go below {await _root(session, place)}"


async def _sftp(session: SshSession, place: Place) -> str:
    """Write a small file where runs will be, read it back, and remove it."""
    parent = await _root(session, place)
    while parent != "/" and not await session.exists(parent):
        parent = posixpath.dirname(parent)
    folder = posixpath.join(parent, f".glasshouse-{secrets.token_hex(6)}")
    file = f"{folder}/trial"
    sftp = await session.sftp()
    with translated("creating", folder):
        await sftp.mkdir(folder, asyncssh.SFTPAttrs(permissions=0o700))
    try:
        with translated("writing", file):
            async with await sftp.open(file, "wb") as remote:
                await remote.write(TRIAL)
        if await session.read_at(file, 0, len(TRIAL)) != TRIAL:
            raise RemoteError(
                f"What was written to {folder} came back changed.", "Check that disk.", code="remote_changed"
            )
    finally:
        await session.remove_tree(folder)
    return f"a file was written to {parent}, read back and removed"


async def _python(session: SshSession, place: Place) -> str:
    return f"{place.python} is CPython {await check_python(session, place.python, place.environment)}"


async def _lock(session: SshSession, place: Place) -> str:
    tried = await try_lock(session, await _root(session, place), place.python)
    if tried.noexec and place.environment == "lock":
        raise noexec(tried.at)
    free = f"{tried.free / 1e9:.1f} GB free"
    return free if tried.busy is None else f"{free}; {tried.busy.reason}"


async def _root(session: SshSession, place: Place) -> str:
    if place.root.startswith("/"):
        return place.root
    home = await home_of(session, await check_login(session))
    return posixpath.normpath(posixpath.join(home, place.root))


PARTS: Final[tuple[tuple[str, Callable[[SshSession, Place], Awaitable[str]]], ...]] = (
    ("commands", _commands),
    ("home", _home),
    ("sftp", _sftp),
    ("python", _python),
    ("lock", _lock),
)
