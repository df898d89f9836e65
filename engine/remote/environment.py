"""Making the Python environment on an allocation ready, and measuring it there before anything of a run is staged.

`lock`: a fresh virtual environment below the root, installed by the allocation's pip from a hash-checked lock,
detached, so that a lost link changes nothing; a later run there finds it. `image`: nothing is installed, and what lies
there must be at the locked versions. What the allocation tells of itself is hostile: bounded, converted strictly,
cleaned.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import msgspec

from engine.errors import RemoteError, WireError
from engine.remote.failures import disk_full
from engine.remote.inventory import Distribution, mismatches
from engine.remote.lockfile import Lock, numbers
from engine.remote.transfer import upload
from engine.wire import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.remote.session import SshSession
    from engine.remote.tail import Caller

T = TypeVar("T")

POLL_SECONDS: Final = 1.0
INSTALL_SECONDS: Final = 3600.0
MEASURE_SECONDS: Final = 900.0
ATTEMPTS: Final = 3
BUNDLE: Final = "bundle.pyz"
OLDEST_PIP: Final = (22, 3)  # the first that installs into another environment than its own
_TEXT: Final = 300
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}[a-z0-9+]{0,16}")
_PATH: Final = re.compile(r"/[^\x00-\x1f\x7f]{0,1000}")


class Place(Protocol):
    """What of a lease is needed here; see `engine.providers.protocol.Lease`."""

    @property
    def root(self) -> str: ...
    @property
    def python(self) -> str: ...
    @property
    def site_paths(self) -> tuple[str, ...]: ...
    @property
    def environment(self) -> Literal["own", "image", "lock"]: ...
    @property
    def index(self) -> str | None: ...


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """An environment that is ready: absolute paths on the allocation, and where it came from.

    `python` starts it, `python_version` is the interpreter's. `installed` tells that it was made now, `seconds` what
    making it ready took.
    """

    root: str
    python: str
    site_paths: tuple[str, ...]
    python_version: str
    installed: bool
    seconds: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker's own code measured there: SHA-256 in hex, files, bytes."""

    digest: str
    files: int
    bytes: int


class _Probe(msgspec.Struct, frozen=True, kw_only=True):
    root: str
    executable: str
    version: str
    implementation: str
    machine: str
    glibc: str
    free: int
    pip: str | None
    sites: list[str]
    cuda: str | None


class _Inventory(msgspec.Struct, frozen=True, kw_only=True):
    distributions: dict[str, Distribution]


class _Look(msgspec.Struct, frozen=True, kw_only=True):
    state: Literal["installing", "ready", "failed", "absent", "ended"]
    phase: Literal["fetching", "installing", "compiling"] = "fetching"
    done: int = 0
    why: str = ""
    tail: str = ""
    lock: str = ""
    python: str = ""
    site: str = ""


async def prepare(
    source: Caller, place: Place, *, lock: Lock, on_phase: Callable[[str], None] | None = None
) -> Prepared:
    """Make the environment of `place` ready and say where it is; bears repeating, also by another process.

    `source` is a session or a link that reconnects. `on_phase` hears how far it is, and what it raises ends the
    installation. Raises `RemoteError`: `environment_no_lock`, `environment_no_pip`, `environment_driver`,
    `environment_failed`, `environment_mismatch`, `remote_disk_full` and the link's codes.
    """
    tell = on_phase or (lambda _text: None)
    began = time.monotonic()
    tell("environment: looking at the allocation")
    probe = await _ask(source, place.python, _Probe, "probe", place.root)
    paths = (probe.root, probe.executable, *probe.sites)
    if not all(_PATH.fullmatch(path) for path in paths) or not _VERSION.fullmatch(probe.version):
        raise _unusable("its version or its paths are none")
    if place.environment == "lock":
        return await _from_lock(source, place, probe, lock, tell, began)
    sites = tuple(place.site_paths or probe.sites)
    if wrong := await _mismatches(source, place, probe, sites, lock):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RemoteError(
            f"The image lacks what the worker needs: {', '.join(wrong[:3])}{more}.",
            'Choose environment = "lock", or an image with these versions.',
            code="environment_mismatch",
        )
    return Prepared(
        root=probe.root,
        python=probe.executable,
        site_paths=sites,
        python_version=probe.version,
        installed=False,
        seconds=time.monotonic() - began,
    )


async def measure(source: Caller, prepared: Prepared, bundle: bytes, folder: str) -> Measured:
    """What the worker in `bundle` measures of a prepared environment; the bundle goes into `folder`, which is made.

    Raises `RemoteError`: `environment_unmeasured` and the link's codes.
    """
    path = f"{folder}/{BUNDLE}"

    async def work(session: SshSession) -> bytes:
        await session.mkdir(prepared.root)
        await session.mkdir(folder)
        await upload(session, bundle, path)
        words = [word for site in prepared.site_paths for word in ("--site", site)]
        command = [prepared.python, "-I", "-S", "-B", path, "measuring", *words]
        told = await session.run(command, timeout=MEASURE_SECONDS)
        return told.stdout if told.exit_status == 0 else b""

    try:
        found = msgspec.convert(parse(await source.call(work)), Measured, strict=True)
    except (WireError, msgspec.ValidationError):
        found = None
    if found is None or not _DIGEST.fullmatch(found.digest):
        raise RemoteError(
            "The environment on the allocation could not be measured.",
            "Look at its Python: the worker's own requirements must import there.",
            code="environment_unmeasured",
        )
    return found


async def _from_lock(
    source: Caller, place: Place, probe: _Probe, lock: Lock, tell: Callable[[str], None], began: float
) -> Prepared:
    _require_fit(probe, lock)
    folder = posixpath.join(probe.root, f"env-{lock.digest[:16]}-{probe.version}")
    seen = await _ask(source, probe.executable, _Look, "look", folder)
    installed = seen.state != "ready"
    if installed:
        if seen.state != "installing" and probe.free < lock.disk:
            raise disk_full(folder, lock.disk, probe.free)
        seen = await _install(source, place, probe, lock, folder, tell)
    inside = seen.site.startswith(f"{folder}/venv/") and posixpath.normpath(seen.site) == seen.site
    if not inside or (seen.lock, seen.python) != (lock.digest, f"{folder}/venv/bin/python"):
        raise _unusable("it is not where it was made")
    return Prepared(
        root=probe.root,
        python=seen.python,
        site_paths=(seen.site,),
        python_version=probe.version,
        installed=installed,
        seconds=time.monotonic() - began,
    )


def _require_fit(probe: _Probe, lock: Lock) -> None:
    """Raise unless `lock` is for what was found."""
    version = ".".join(probe.version.split(".")[:2])
    if (
        probe.implementation != "cpython"
        or version not in lock.pythons
        or probe.machine != lock.machine
        or not _is_at_least(probe.glibc, lock.glibc)
    ):
        oldest = ".".join(map(str, lock.glibc))
        raise RemoteError(
            f"There is no lock for {_clean(probe.implementation)} {_clean(version)} on {_clean(probe.machine)} "
            f"with glibc {_clean(probe.glibc) or 'absent'}.",
            f"Choose CPython {', '.join(lock.pythons)} on {lock.machine} with glibc {oldest} or newer.",
            code="environment_no_lock",
        )
    if not _is_at_least(probe.pip, OLDEST_PIP):
        raise RemoteError(
            f"The allocation's Python has no pip of {'.'.join(map(str, OLDEST_PIP))} or newer.",
            "Choose an image with pip, or name an interpreter that has it with `python`.",
            code="environment_no_pip",
        )
    if lock.cuda is not None and probe.cuda and not _is_at_least(probe.cuda, lock.cuda):
        raise RemoteError(
            f"The GPU's driver knows CUDA {_clean(probe.cuda)} and the lock needs {'.'.join(map(str, lock.cuda))}.",
            "Choose a machine with a newer driver.",
            code="environment_driver",
        )


def _is_at_least(version: str | None, oldest: tuple[int, ...]) -> bool:
    """False also for what is no version, such as another C library's."""
    try:
        return version is not None and (*numbers(version), *(0 for _ in oldest)) >= oldest
    except ValueError:
        return False


async def _install(
    source: Caller, place: Place, probe: _Probe, lock: Lock, folder: str, tell: Callable[[str], None]
) -> _Look:
    """Start or find the installation and wait for its end."""
    total = len(lock.versions)
    tell(f"environment: 0 of {total} packages")

    async def deliver(session: SshSession) -> None:
        await session.mkdir(folder)
        await upload(session, lock.text, f"{folder}/lock.txt")

    await source.call(deliver)
    words = ("begin", folder, lock.digest, *([place.index] if place.index else []))
    seen = await _ask(source, probe.executable, _Look, *words)
    try:
        async with asyncio.timeout(INSTALL_SECONDS):
            while seen.state == "installing":
                done = min(max(seen.done, 0), total)
                compiling = seen.phase == "compiling"
                tell(f"environment: {seen.phase}" + ("" if compiling else f" {done} of {total} packages"))
                await asyncio.sleep(POLL_SECONDS)
                seen = await _ask(source, probe.executable, _Look, "look", folder)
    except BaseException as error:
        with contextlib.suppress(RemoteError):
            await asyncio.shield(_ask(source, probe.executable, _Look, "end", folder))
        if isinstance(error, TimeoutError):
            raise RemoteError(
                f"The environment was not installed within {INSTALL_SECONDS / 60:.0f} minutes.",
                "Look at the allocation's network.",
                code="environment_failed",
            ) from error
        raise
    if seen.state != "ready":
        lines = [_clean(line) for line in seen.tail.splitlines() if line.strip()]
        raise RemoteError(
            f"The environment could not be installed ({_clean(seen.why)}): {'; '.join(lines[-4:]) or 'no word why'}",
            f"The whole log is {folder}/install.log on the allocation.",
            code="environment_failed",
        )
    return seen


async def _mismatches(source: Caller, place: Place, probe: _Probe, sites: tuple[str, ...], lock: Lock) -> list[str]:
    found = await _ask(source, probe.executable, _Inventory, "inventory", *sites)
    short = ".".join(probe.version.split(".")[:2])
    markers = {
        "implementation_name": probe.implementation, "implementation_version": probe.version, "os_name": "posix",
        "platform_machine": probe.machine, "platform_python_implementation": "CPython", "platform_release": "",
        "platform_system": "Linux", "platform_version": "", "python_full_version": probe.version,
        "python_version": short, "sys_platform": "linux",
    }  # fmt: skip
    return mismatches(found.distributions, lock.versions, markers)


async def _ask(source: Caller, python: str, kind: type[T], *words: str) -> T:
    """One verb of `installer.py` on the allocation."""
    text = Path(__file__).with_name("programs").joinpath("installer.py").read_text(encoding="utf-8")
    for _ in range(ATTEMPTS):
        told = await source.call(lambda session: session.run([python, "-I", "-B", "-c", text, *words]))
        if told.stdout or told.exit_status not in (0, None):
            break  # a server that is being ended can lose an answer; every verb bears repeating
    if told.exit_status in (126, 127):
        raise RemoteError(
            f"The allocation has no Python called {python}.",
            "Name one with `python` in config.toml, or choose another image.",
            code="environment_no_lock",
        )
    try:
        answer: Any = parse(told.stdout)
        if told.exit_status == 0:
            return msgspec.convert(answer, kind, strict=True)
        why = str(answer["error"])
    except (WireError, msgspec.ValidationError, KeyError, TypeError):
        why = f"exit {told.exit_status}"
    raise _unusable(_clean(why))


def _unusable(why: str) -> RemoteError:
    return RemoteError(
        f"The allocation's Python environment cannot be used: {why}.",
        "Look at its Python and its disk.",
        code="environment_failed",
    )


def _clean(text: str) -> str:
    """Text of the allocation's for a message: printable, short, without the credentials of an address."""
    shown = re.sub(r"[^\x20-\x7e]+", " ", text)
    return re.sub(r"://[^/@\s]*@", "://", shown).strip()[:_TEXT]
