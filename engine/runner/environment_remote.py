"""The environment on a rented or static allocation: made ready, measured there, and pinned for the verifier."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from engine.errors import MissingExtraError, RunError
from engine.plan import Plan
from engine.providers.protocol import Lease
from engine.providers.settings import Settings, environment_of
from engine.remote.bundle import LOCK_NAME, worker_lock
from engine.remote.environment import Measured, Prepared, measure, prepare
from engine.remote.lockfile import Lock, lock_of, shipped_lock
from engine.remote.reconnect import Reconnecting
from engine.runner.folder import RunFolder
from engine.runner.spec import host_in
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.wire import parse

REFERENCE: Final = "reference.json"
Source = Literal["own", "image", "lock"]


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """An allocation's environment before any file of the run was sent to it. `measured` is None for a raw run."""

    allocation_id: str
    source: Source
    lock: str
    lock_digest: str
    prepared: Prepared
    measured: Measured | None

    def evidence(self) -> dict[str, object]:
        """The part that goes into the run's evidence: no path and no address."""
        measured = self.measured
        return {
            "source": self.source,
            "python": self.prepared.python_version,
            "lock": self.lock,
            "lockDigest": self.lock_digest,
            "installed": self.prepared.installed,
            "seconds": round(self.prepared.seconds, 3),
            "digest": None if measured is None else measured.digest,
            "files": None if measured is None else measured.files,
            "bytes": None if measured is None else measured.bytes,
        }


def chosen_lock(plan: Plan, folder: RunFolder, settings: Settings) -> Mapping[str, str]:
    """Names and versions for the run's bundle: what is installed here, or the shipped lock's.

    The shipped lock is for allocations that install from it, and for images where the operator has no torch.
    Raises `MissingExtraError` for a run on this machine without the `local` extra.
    """
    host = host_in(folder.home, settings, plan.provider.allocation)
    source = environment_of(settings, plan.provider.name, host)
    if source == "lock":
        return shipped_lock().versions
    try:
        return worker_lock()
    except MissingExtraError:
        if source == "own":
            raise
        return shipped_lock().versions


def lock_in(bundle: bytes) -> dict[str, str]:
    """The names and versions in a bundle."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return msgspec.convert(parse(archive.read(LOCK_NAME)), dict[str, str])


def pinned(folder: RunFolder) -> Pinned | None:
    """What an earlier runner of this run measured and stored, or None."""
    stored = folder.read(REFERENCE)
    return None if stored is None else msgspec.json.decode(stored, type=Pinned)


def with_prepared_paths(lease: Lease, environment: Pinned) -> Lease:
    """The lease with the absolute paths of the prepared environment."""
    ready = environment.prepared
    return msgspec.structs.replace(lease, root=ready.root, python=ready.python, site_paths=ready.site_paths)


async def make_ready(
    link: Reconnecting,
    lease: Lease,
    *,
    run_id: str,
    bundle: bytes,
    measured: bool,
    writer: Writer,
    reader: Reader,
    on_phase: Callable[[str], None] | None = None,
) -> Pinned:
    """Prepare and measure the environment; idempotent.

    A raw run, which needs no measurement, measures too where an earlier run did: an environment that has changed since
    would train it on something else.

    Raises what `prepare` and `measure` raise, and `RunError`: `lock_changed` (the bundle holds another lock than the
    one to install), `environment_changed` (an earlier run measured another digest on this allocation).
    """
    lock = _lock_for(lease, bundle)
    ready = await prepare(link, lease, lock=lock, on_phase=on_phase)
    measurement = None
    if measured or (not ready.installed and reader.setting(_name(lease, lock, ready)) is not None):
        if on_phase is not None:
            on_phase("environment: measuring")
        measurement = await measure(link, ready, bundle, f"{ready.root}/{run_id}")
        _compare(lease, lock, ready, measurement, writer, reader)
    return Pinned(
        allocation_id=lease.allocation_id,
        source=lease.environment,
        lock=lock.name,
        lock_digest=lock.digest,
        prepared=ready,
        measured=measurement if measured else None,
    )


def _lock_for(lease: Lease, bundle: bytes) -> Lock:
    bundled = lock_in(bundle)
    if lease.environment != "lock":
        return lock_of(bundled)
    lock = shipped_lock()
    if lock.versions != bundled:
        raise RunError(
            "The package versions to install differ from those in this run's bundle: the settings or glasshouse's "
            "version changed since the run began.",
            "Start the run again.",
            code="lock_changed",
        )
    return lock


def _compare(lease: Lease, lock: Lock, ready: Prepared, measured: Measured, writer: Writer, reader: Reader) -> None:
    """A later run on a kept allocation must measure the same digest as the first one.

    Exceptions: an environment that this run installed, and the image of a static host, which its owner may change.
    """
    if lease.provider == "static" and lease.environment == "image":
        return
    name = _name(lease, lock, ready)
    known = None if ready.installed else reader.setting(name)
    if known is None:
        writer.set_setting(name, measured.digest)
    elif known != measured.digest:
        raise RunError(
            "The Python environment on this allocation has changed since an earlier run measured it.",
            "Release the allocation, or delete its env- folder so that the environment is installed again.",
            code="environment_changed",
        )


def _name(lease: Lease, lock: Lock, ready: Prepared) -> str:
    """The setting that keeps the digest which the first run measured on this allocation."""
    return f"environment:{lease.provider}:{lease.allocation_id}:{lock.digest[:16]}:{ready.python_version}"
