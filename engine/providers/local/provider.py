"""The embedded allocation: this machine behind its own SSH server on loopback, used exactly like a pod."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncssh
import msgspec

import engine
from engine.errors import MissingExtraError, ProviderError
from engine.providers.local import files
from engine.providers.local.sshd import HOST
from engine.providers.protocol import (
    Address,
    Device,
    EmptyProof,
    ExistingAllocation,
    Lease,
    LedgerEntry,
    Observation,
    OnPhase,
    Quote,
    Reconciliation,
    Scope,
    Spec,
)
from engine.remote.bundle import site_paths, worker_distributions
from engine.remote.launch import Launched
from engine.remote.programs import processes
from engine.remote.programs.launcher import ENVIRONMENT
from engine.remote.session import SshSession
from engine.system.files import write_private
from engine.system.memory import available_memory
from engine.system.processes import is_alive
from engine.wire import utc_now
from engine.worker.gpu_memory import total_memory
from engine.worker.identity import cpu_name, gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.remote.endpoint import LinkLimits

NAME: Final = "local"
START_SECONDS: Final = 30.0
GRACE_SECONDS: Final = 3.0
POLL_SECONDS: Final = 0.02
_CPU: Final = "CPU "
_PACKAGES: Final = Path(engine.__file__).resolve().parent.parent
_EXTRA_MODULES: Final = ("torch", "transformers", "peft")


class LocalProvider:
    """Allocations in `local/` of the home, each with its own server, keys and disk, at no cost."""

    def __init__(self, home: Path, limits: LinkLimits | None = None) -> None:
        self._folder = home / "local"
        self._limits = limits

    @property
    def name(self) -> str:
        """`local`."""
        return NAME

    async def preflight(self) -> None:
        """Raise `MissingExtraError` without the `local` extra, `platform_unsupported` without Linux 5.3 or newer."""
        missing = [name for name in _EXTRA_MODULES if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingExtraError(
                f"A run on this machine needs {', '.join(missing)}, which this installation lacks.",
                "Run: pip install 'glasshouse[local]'",
            )
        worker_distributions()
        if not hasattr(os, "memfd_create") or not hasattr(os, "pidfd_open"):
            raise ProviderError(
                "The local allocation needs Linux 5.3 or newer.",
                "Run on another machine: choose --provider static or --provider runpod.",
                code="platform_unsupported",
            )

    async def quote(self, spec: Spec) -> Quote:
        """This machine, at no cost."""
        return Quote(provider=NAME, gpu_model=await asyncio.to_thread(gpu_model), price_per_hour=0.0)

    async def devices(self, spec: Spec) -> tuple[Device, ...]:
        """The first GPU with its memory, or this machine's processor with the memory that is free."""
        return (await asyncio.to_thread(_device),)

    async def acquire(self, spec: Spec, run_id: str, on_phase: OnPhase | None = None) -> Lease:
        """Create the folder, the keys and the disk; a folder that an earlier attempt completed is reused."""
        folder = self._folder_of(spec.name)
        try:
            lease = _read_lease(folder)
            if lease is not None:
                return lease
            return await asyncio.to_thread(_create, folder, spec, run_id)
        except OSError as error:
            raise ProviderError(
                f"The local allocation's folder {folder} cannot be created: {error.strerror}.",
                "Free some space, or choose another home with --home.",
                code="acquire_failed",
            ) from error

    async def wait_ready(self, lease: Lease, on_phase: OnPhase | None = None) -> Lease:
        """Start the SSH server unless it runs, and wait until it listens."""
        folder = self._folder_of(lease.name)
        ready = _running(folder)
        if ready is None:
            if on_phase:
                on_phase("ssh server")
            await self._start(folder)
            ready = await self._wait_running(folder)
        address = Address(
            host=HOST,
            port=ready.port,
            user=files.USER,
            host_key=ready.host_key,
            client_key_path=str(folder / files.CLIENT_KEY),
        )
        if lease.address is not None and lease.address.host_key != address.host_key:
            raise ProviderError(
                "The local allocation presents a different host key than before.",
                "Run `glasshouse cleanup`, then start a new run.",
                code="allocation_changed",
            )
        return msgspec.structs.replace(lease, address=address)

    async def open_session(self, lease: Lease) -> SshSession:
        """A session at the lease's address; see `SshSession.connect`."""
        return await SshSession.connect(lease.endpoint(), self._limits)

    async def observe(self, lease: Lease) -> Observation:
        """`alive` with a running server, `stopped` without one, `gone` without a folder."""
        return _observe(self._folder_of(lease.name))

    async def release(self, lease: Lease) -> bool:
        """Terminate the allocation's processes and remove its folder; a cancellation does not interrupt it."""
        await asyncio.shield(asyncio.to_thread(_release, self._folder_of(lease.name)))
        return True

    async def prove_empty(self, scope: Scope) -> EmptyProof:
        """Count the allocations of the scope of which a folder, a process or a listening server is left."""
        names = set(scope.names) | {lease.name for lease in scope.leases}
        present = {name for name in names if await asyncio.to_thread(_is_present, self._folder_of(name))}
        present |= {lease.name for lease in scope.leases if await _still_serves(lease)}
        others = {allocation.name for allocation in self._list()} - names
        return EmptyProof(
            scope=tuple(sorted(names)),
            listings=1,
            count=len(present),
            others=len(others),
            at=utc_now(),
            statement="folders, processes and SSH servers of this machine were checked",
        )

    async def reconcile(self, ledger: Sequence[LedgerEntry]) -> Reconciliation:
        """Compare the ledger with the folders of this home."""
        known = {entry.name for entry in ledger}
        listed = await asyncio.to_thread(self._list)
        return Reconciliation(
            ours=tuple(allocation for allocation in listed if allocation.name in known),
            gone=tuple(sorted(known - {allocation.name for allocation in listed})),
            foreign=tuple(allocation for allocation in listed if allocation.name not in known),
        )

    async def close(self) -> None:
        """Nothing to close."""

    def _folder_of(self, name: str) -> Path:
        if not name or name in {".", ".."} or "/" in name or "\0" in name:
            raise ProviderError("An allocation's name must not be a path.", code="allocation_unknown")
        return self._folder.resolve() / name

    def _list(self) -> list[ExistingAllocation]:
        if not self._folder.is_dir():
            return []
        folders = sorted(path for path in self._folder.resolve().iterdir() if path.is_dir())
        return [
            ExistingAllocation(name=path.name, observation=_observe(path), lease=_read_lease(path)) for path in folders
        ]

    async def _start(self, folder: Path) -> None:
        if not (folder / files.ROOT).is_dir():
            raise ProviderError("The local allocation no longer exists.", "Start a new run.", code="allocation_gone")
        with files.open_log(folder) as log:
            starting = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engine.providers.local.sshd",
                "--detach",
                "--dir",
                str(folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**_environment(), processes.MARK: str(folder), "PYTHONPATH": _python_path()},
                start_new_session=True,
            )
        if await starting.wait() != 0:
            raise _not_started(folder)

    async def _wait_running(self, folder: Path) -> files.Ready:
        until = time.monotonic() + START_SECONDS
        while (ready := _running(folder)) is None:
            if time.monotonic() > until:
                raise _not_started(folder)
            await asyncio.sleep(POLL_SECONDS)
        return ready


def _environment() -> dict[str, str]:
    """The part of this process's environment that the server and its commands may see: no token, no passphrase."""
    return {name: value for name, value in os.environ.items() if name in ENVIRONMENT}


def _python_path() -> str:
    """`PYTHONPATH` with which the server's process finds this package and its dependencies, installed or not."""
    return os.pathsep.join(filter(None, (str(_PACKAGES), os.environ.get("PYTHONPATH"))))


def gpu_model() -> str:
    """The first GPU's name, or `CPU (MODEL)` if the driver lists none or torch is built without CUDA."""
    torch = worker_distributions()["torch"].version
    device = None if torch.endswith("+cpu") else gpu()
    return device.name if device else f"{_CPU}({cpu_name()})"


def _device() -> Device:
    name = gpu_model()
    if name.startswith(_CPU):
        return Device(name=name, kind="cpu", memory=available_memory())
    return Device(name=name, kind="cuda", memory=total_memory())


def _create(folder: Path, spec: Spec, run_id: str) -> Lease:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / files.ROOT).mkdir(mode=0o700, exist_ok=True)
    client, host = (asyncssh.generate_private_key("ssh-ed25519", comment=spec.name) for _ in range(2))
    write_private(folder / files.HOST_KEY, host.export_private_key())
    write_private(folder / files.CLIENT_KEY, client.export_private_key())
    write_private(folder / files.CLIENT_PUBLIC_KEY, client.export_public_key())
    lease = Lease(
        allocation_id=spec.name,
        provider=NAME,
        name=spec.name,
        run_id=run_id,
        gpu_model=gpu_model(),
        price_per_hour=0.0,
        acquired_at=utc_now(),
        root=str(folder / files.ROOT),
        python=sys.executable,
        site_paths=site_paths(),
        machine={"hostKey": host.get_fingerprint()},
    )
    write_private(folder / files.LEASE, msgspec.json.encode(lease))
    return lease


def _read_lease(folder: Path) -> Lease | None:
    try:
        return msgspec.json.decode((folder / files.LEASE).read_bytes(), type=Lease)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _running(folder: Path) -> files.Ready | None:
    """The ready file if its server is still running."""
    try:
        ready = files.read_ready(folder)
    except ValueError as error:
        raise ProviderError(str(error), "Run `glasshouse cleanup`.", code="allocation_changed") from error
    return ready if ready is not None and is_alive(ready.pid, ready.start) else None


def _observe(folder: Path) -> Observation:
    try:
        if not folder.is_dir():
            return "gone"
        return "alive" if _running(folder) is not None else "stopped"
    except (OSError, ProviderError):
        return "unknown"


def _launched(folder: Path) -> set[tuple[int, int]]:
    """The supervisors that were started in the allocation, by pid and start time."""
    supervisors: set[tuple[int, int]] = set()
    for record in (folder / files.ROOT).glob("*/launched.json"):
        try:
            launched = msgspec.json.decode(record.read_bytes(), type=Launched)
        except (OSError, msgspec.MsgspecError):
            continue  # its process is still recognised by its command line
        supervisors.add((launched.pid, launched.start))
    return supervisors


def _release(folder: Path) -> None:
    left = processes.terminate(processes.of_folder(folder, _launched(folder)), GRACE_SECONDS)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise ProviderError(
            f"Processes of the local allocation did not exit, even after SIGKILL: {pids}.",
            f"Wait for them or end them by hand, then remove {folder}.",
            code="release_failed",
        )
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise ProviderError(
            f"The local allocation's folder could not be removed: {error.strerror}.",
            f"Remove {folder} by hand.",
            code="release_failed",
        ) from error


def _is_present(folder: Path) -> bool:
    return folder.exists() or bool(processes.of_folder(folder))


async def _still_serves(lease: Lease) -> bool:
    """True when the lease's port still answers with the lease's host key: another server may have taken the port."""
    if lease.address is None:
        return False
    try:
        shown = await asyncio.wait_for(
            asyncssh.get_server_host_key(lease.address.host, lease.address.port, config=None), 5.0
        )
    except (OSError, asyncssh.Error, TimeoutError):
        return False
    pinned = asyncssh.import_public_key(lease.address.host_key)
    return shown is not None and shown.public_data == pinned.public_data


def _not_started(folder: Path) -> ProviderError:
    return ProviderError(
        "The local allocation's SSH server did not start.",
        f"See {folder / files.LOG} for the reason.",
        code="server_not_started",
    )
