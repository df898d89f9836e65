"""Preparing the Python environment on an allocation, and measuring it there before anything of a run is staged.

`lock`: a fresh virtual environment below the root, installed by the allocation's pip from a hash-checked lock. It runs
detached, so that a lost link does no harm; a later run there reuses it. `image`: nothing is installed, and the packages
there must have the locked versions. What the allocation reports about itself is hostile input: bounded, strictly
converted, cleaned.
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
from engine.remote.failures import disk_full, noexec
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
OLDEST_PIP: Final = (22, 3)  # the first with `--python`, which installs into another environment
_TEXT: Final = 300
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}[a-z0-9+]{0,16}")
_PATH: Final = re.compile(r"/[^\x00-\x1f\x7f]{0,1000}")


class Place(Protocol):
    """The part of a lease that is needed here; see `engine.providers.protocol.Lease`."""

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
    """An environment that is ready: absolute paths on the allocation, and how it was prepared.

    `python` is its interpreter, of version `python_version`. `installed` is true if it was installed just now;
    `seconds` is the time that the preparation took.
    """

    root: str
    python: str
    site_paths: tuple[str, ...]
    python_version: str
    installed: bool
    seconds: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The worker's own measurement there: SHA-256 in hex, number of files, number of bytes."""

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
    noexec: bool = False


class _Inventory(msgspec.Struct, frozen=True, kw_only=True):
    distributions: dict[str, Distribution]


class _Progress(msgspec.Struct, frozen=True, kw_only=True):
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
    """Prepare the environment of `place` and return where it is; idempotent, also from another process.

    `source` is a session or a link that reconnects. `on_phase` receives the progress; an exception from it stops the
    installation. Raises `RemoteError`: `environment_no_lock`, `environment_no_pip`, `environment_driver`,
    `environment_failed`, `environment_mismatch`, `remote_disk_full` and the link's codes.
    """
    report = on_phase or (lambda _text: None)
    began = time.monotonic()
    report("environment: checking the allocation")
    probe = await _request(source, place.python, _Probe, "probe", place.root)
    paths = (probe.root, probe.executable, *probe.sites)
    if not all(_PATH.fullmatch(path) for path in paths) or not _VERSION.fullmatch(probe.version):
        raise _unusable("its version or its paths are not valid")
    if place.environment == "lock":
        return await _from_lock(source, place, probe, lock, report, began)
    sites = tuple(place.site_paths or probe.sites)
    if wrong := await _mismatches(source, place, probe, sites, lock):
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise RemoteError(
            f"The image's packages differ from those that the worker needs: {', '.join(wrong[:3])}{more}.",
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
    """Have the worker in `bundle` measure a prepared environment; the bundle is uploaded to `folder`, which is created.

    Raises `RemoteError`: `environment_unmeasured` and the link's codes.
    """
    path = f"{folder}/{BUNDLE}"

    said = b""

    async def work(session: SshSession) -> bytes:
        nonlocal said
        await session.mkdir(prepared.root)
        await session.mkdir(folder)
        await upload(session, bundle, path)
        words = [word for site in prepared.site_paths for word in ("--site", site)]
        command = [prepared.python, "-I", "-S", "-B", path, "measuring", *words]
        result = await session.run(command, timeout=MEASURE_SECONDS)
        said = result.stderr
        return result.stdout if result.exit_status == 0 else b""

    try:
        measured = msgspec.convert(parse(await source.call(work)), Measured, strict=True)
    except (WireError, msgspec.ValidationError):
        measured = None
    if measured is None or not _DIGEST.fullmatch(measured.digest):
        raise RemoteError(
            f"The environment on the allocation could not be measured{_quoted(said)}.",
            "Check its Python: the worker's requirements must be importable there, and all their files readable.",
            code="environment_unmeasured",
        )
    return measured


async def _from_lock(
    source: Caller, place: Place, probe: _Probe, lock: Lock, report: Callable[[str], None], began: float
) -> Prepared:
    _require_fit(probe, lock)
    if probe.noexec:
        raise noexec(probe.root)
    folder = posixpath.join(probe.root, f"env-{lock.digest[:16]}-{probe.version}")
    progress = await _request(source, probe.executable, _Progress, "look", folder)
    needs_install = progress.state != "ready"
    if needs_install:
        if progress.state != "installing" and probe.free < lock.disk:
            raise disk_full(folder, lock.disk, probe.free)
        progress = await _install(source, place, probe, lock, folder, report)
    is_inside = progress.site.startswith(f"{folder}/venv/") and posixpath.normpath(progress.site) == progress.site
    if not is_inside or (progress.lock, progress.python) != (lock.digest, f"{folder}/venv/bin/python"):
        raise _unusable("it is not where it was installed")
    return Prepared(
        root=probe.root,
        python=progress.python,
        site_paths=(progress.site,),
        python_version=probe.version,
        installed=needs_install,
        seconds=time.monotonic() - began,
    )


def _require_fit(probe: _Probe, lock: Lock) -> None:
    """Raise unless `lock` is for this interpreter and machine."""
    version = ".".join(probe.version.split(".")[:2])
    if (
        probe.implementation != "cpython"
        or version not in lock.pythons
        or probe.machine != lock.machine
        or not _is_at_least(probe.glibc, lock.glibc)
    ):
        oldest = ".".join(map(str, lock.glibc))
        raise RemoteError(
            f"No lock exists for {_clean(probe.implementation)} {_clean(version)} on {_clean(probe.machine)} "
            f"with glibc {_clean(probe.glibc) or 'absent'}.",
            f"Choose CPython {', '.join(lock.pythons)} on {lock.machine} with glibc {oldest} or newer.",
            code="environment_no_lock",
        )
    if not _is_at_least(probe.pip, OLDEST_PIP):
        raise RemoteError(
            f"The allocation's Python has no pip {'.'.join(map(str, OLDEST_PIP))} or newer.",
            "Choose an image with pip, or set `python` in config.toml to an interpreter that has it.",
            code="environment_no_pip",
        )
    if lock.cuda is not None and probe.cuda and not _is_at_least(probe.cuda, lock.cuda):
        raise RemoteError(
            f"The GPU's driver supports CUDA {_clean(probe.cuda)}; the lock needs {'.'.join(map(str, lock.cuda))}.",
            "Choose a machine with a newer driver.",
            code="environment_driver",
        )


def _is_at_least(version: str | None, oldest: tuple[int, ...]) -> bool:
    """False also for an invalid version, such as that of another C library."""
    try:
        return version is not None and (*numbers(version), *(0 for _ in oldest)) >= oldest
    except ValueError:
        return False


async def _install(
    source: Caller, place: Place, probe: _Probe, lock: Lock, folder: str, report: Callable[[str], None]
) -> _Progress:
    """Start the installation, or join one under way, and wait for its end."""
    total = len(lock.versions)
    report(f"environment: 0 of {total} packages")

    async def deliver(session: SshSession) -> None:
        await session.mkdir(folder)
        await upload(session, lock.text, f"{folder}/lock.txt")

    await source.call(deliver)
    words = ("begin", folder, lock.digest, *([place.index] if place.index else []))
    progress = await _request(source, probe.executable, _Progress, *words)
    try:
        async with asyncio.timeout(INSTALL_SECONDS):
            while progress.state == "installing":
                done = min(max(progress.done, 0), total)
                compiling = progress.phase == "compiling"
                report(f"environment: {progress.phase}" + ("" if compiling else f" {done} of {total} packages"))
                await asyncio.sleep(POLL_SECONDS)
                progress = await _request(source, probe.executable, _Progress, "look", folder)
    except BaseException as error:
        with contextlib.suppress(RemoteError):
            await asyncio.shield(_request(source, probe.executable, _Progress, "end", folder))
        if isinstance(error, TimeoutError):
            raise RemoteError(
                f"The environment was not installed within {INSTALL_SECONDS / 60:.0f} minutes.",
                "Check the allocation's network.",
                code="environment_failed",
            ) from error
        raise
    if progress.state != "ready":
        lines = [_clean(line) for line in progress.tail.splitlines() if line.strip()]
        raise RemoteError(
            f"The environment could not be installed ({_clean(progress.why)}): {'; '.join(lines[-4:]) or 'no output'}",
            f"See the whole log at {folder}/install.log on the allocation.",
            code="environment_failed",
        )
    return progress


async def _mismatches(source: Caller, place: Place, probe: _Probe, sites: tuple[str, ...], lock: Lock) -> list[str]:
    inventory = await _request(source, probe.executable, _Inventory, "inventory", *sites)
    short = ".".join(probe.version.split(".")[:2])
    markers = {
        "implementation_name": probe.implementation,
        "implementation_version": probe.version,
        "os_name": "posix",
        "platform_machine": probe.machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": probe.version,
        "python_version": short,
        "sys_platform": "linux",
    }
    return mismatches(inventory.distributions, lock.versions, markers)


async def _request(source: Caller, python: str, kind: type[T], *words: str) -> T:
    """Run one verb of `programs/installer.py` on the allocation."""
    text = Path(__file__).with_name("programs").joinpath("installer.py").read_text(encoding="utf-8")
    for _ in range(ATTEMPTS):
        result = await source.call(lambda session: session.run([python, "-I", "-B", "-c", text, *words]))
        if result.stdout or result.exit_status not in (0, None):
            break  # an SSH server that is being killed can lose the output; every verb is idempotent
    if result.exit_status in (126, 127):
        raise RemoteError(
            f"The allocation has no Python called {python}.",
            "Set `python` in config.toml to its interpreter, or choose another image.",
            code="environment_no_lock",
        )
    try:
        answer: Any = parse(result.stdout)
        if result.exit_status == 0:
            return msgspec.convert(answer, kind, strict=True)
        why = str(answer["error"])
    except (WireError, msgspec.ValidationError, KeyError, TypeError):
        why = f"exit status {result.exit_status}"
    raise _unusable(_clean(why))


def _unusable(why: str) -> RemoteError:
    return RemoteError(
        f"The allocation's Python environment cannot be used: {why}.",
        "Check its Python and its disk.",
        code="environment_failed",
    )


def _quoted(said: bytes) -> str:
    """The last line that a command printed to stderr, as what the allocation says; empty if it printed none."""
    lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    return f'; it says: "{_clean(lines[-1])}"' if lines else ""


def _clean(text: str) -> str:
    """Text from the allocation for a message: printable, short, without credentials in URLs."""
    shown = re.sub(r"[^\x20-\x7e]+", " ", text)
    return re.sub(r"://[^/@\s]*@", "://", shown).strip()[:_TEXT]
