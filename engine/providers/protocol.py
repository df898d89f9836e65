"""What the runner knows about a provider: frozen records, and the methods that every provider implements.

Order in a run: `preflight`, `quote`, then the intent is written to the ledger, `acquire`, `wait_ready`, `open_session`;
after the run `release` and `prove_empty`. At every start `reconcile` compares ledger and provider.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import msgspec

from engine.errors import ProviderError
from engine.remote.endpoint import Endpoint

if TYPE_CHECKING:
    from engine.remote.session import SshSession

Observation = Literal["alive", "stopped", "gone", "unknown"]
OnPhase = Callable[[str], None]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    pass


class Spec(_Record, frozen=True, kw_only=True):
    """What to acquire. `name` is unique to one attempt and is written to the ledger before `acquire`.

    `gpus` are acceptable models in order of preference. Prices in USD: `max_price` per hour, `max_cost` for the whole
    life of the allocation, which terminates itself after `max_seconds`. `host` is a static host's name.
    """

    name: str
    gpus: tuple[str, ...] = ()
    host: str | None = None
    max_price: float | None = None
    max_cost: float | None = None
    disk_gb: int = 40
    max_seconds: float = 24 * 3600.0


class Quote(_Record, frozen=True, kw_only=True):
    """What `acquire` would return now. `price_per_hour` in USD."""

    provider: str
    gpu_model: str
    price_per_hour: float


class Device(_Record, frozen=True, kw_only=True):
    """What an allocation would train on: a GPU, or the processor of a machine without one.

    `memory` in bytes: of the GPU, or what the machine's processes can still use; None if it is not known.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    memory: int | None


class Jump(_Record, frozen=True, kw_only=True):
    """A server on the way to an allocation: where it is, its pinned public key, and the client's key or agent."""

    host: str
    port: int
    user: str
    host_key: str
    client_key_path: str | None = None
    agent_path: str | None = None

    def endpoint(self, label: str = "") -> Endpoint:
        """What a connection to it needs; `label` names it in sentences."""
        return Endpoint(
            host=self.host,
            port=self.port,
            user=self.user,
            client_key=None if self.client_key_path is None else Path(self.client_key_path),
            agent_path=self.agent_path,
            host_key=self.host_key,
            label=label,
        )


class Address(Jump, frozen=True, kw_only=True):
    """Where an SSH server is. `host_key` is its pinned public key; the client key stays in its file, or in the agent
    that listens at `agent_path`. `jumps` are the servers that lead to it, first to last.
    """

    jumps: tuple[Jump, ...] = ()

    def endpoint(self, label: str = "") -> Endpoint:
        """What an SSH session needs."""
        jumps = tuple(jump.endpoint(f"jump {number}") for number, jump in enumerate(self.jumps, 1))
        return replace(super().endpoint(label), jumps=jumps)


class Lease(_Record, frozen=True, kw_only=True):
    """One of our allocations, without secrets: a restarted runner continues from it.

    `address` is None until `wait_ready`. `python` and `site_paths` are the interpreter and the folders of third-party
    packages there. `environment` says where they come from: `own` is this installation's environment, `image` is
    preinstalled, `lock` has yet to be installed from the hash-checked lock, by pip from its default index or from
    `index`. `root` is the parent of run folders, relative to the login's home unless absolute. `machine` identifies the
    machine as the provider knows it. `heartbeat` is a file there that the dead-man's switch watches. The allocation
    terminates itself `lifetime` seconds after its creation; `left` of them were left when this record was made, None
    if that is unknown or long ago, and `deadline` shows that moment in UTC.
    """

    allocation_id: str
    provider: str
    name: str
    run_id: str
    gpu_model: str | None
    price_per_hour: float | None
    acquired_at: str
    root: str
    python: str
    site_paths: tuple[str, ...]
    machine: dict[str, str]
    environment: Literal["own", "image", "lock"] = "own"
    index: str | None = None
    heartbeat: str | None = None
    deadline: str | None = None
    lifetime: float | None = None
    left: float | None = None
    address: Address | None = None

    def endpoint(self) -> Endpoint:
        """What an SSH session needs; raises `ProviderError` (`allocation_not_ready`) before `wait_ready`."""
        if self.address is None:
            raise ProviderError("This allocation is not ready yet.", code="allocation_not_ready")
        return self.address.endpoint()


class Scope(_Record, frozen=True, kw_only=True):
    """What a proof covers: every name that a run ever wrote to the ledger, and the leases it obtained."""

    names: tuple[str, ...]
    leases: tuple[Lease, ...] = ()


class EmptyProof(_Record, frozen=True, kw_only=True):
    """A counted observation: `count` allocations of the scope exist; `others` counts what else the provider lists.

    It rests on `listings` successful listings, the last one taken at `at` (UTC). `count` is None where nothing is ours
    to delete. `unanswered` are names whose creation got no clear answer: an allocation may still appear.
    """

    scope: tuple[str, ...]
    listings: int
    count: int | None
    others: int | None
    at: str
    statement: str
    unanswered: tuple[str, ...] = ()


class LedgerEntry(_Record, frozen=True, kw_only=True):
    """One allocation as recorded in the ledger; `lease` is None when only the intent was written."""

    name: str
    lease: Lease | None = None


class ExistingAllocation(_Record, frozen=True, kw_only=True):
    """One allocation that exists. `lease` is None where it cannot be resumed.

    The remaining fields are as the provider reports them, or None: `since` in UTC, `price_per_hour` in USD. `age_sec`
    is the time since then by the provider's own clock; both are its claims.
    """

    name: str
    observation: Observation
    lease: Lease | None = None
    allocation_id: str | None = None
    gpu_model: str | None = None
    price_per_hour: float | None = None
    since: str | None = None
    age_sec: float | None = None


class Reconciliation(_Record, frozen=True, kw_only=True):
    """Ledger against provider: `ours` are in both, `gone` only in the ledger, `foreign` only at the provider."""

    ours: tuple[ExistingAllocation, ...] = ()
    gone: tuple[str, ...] = ()
    foreign: tuple[ExistingAllocation, ...] = ()


@runtime_checkable
class Provider(Protocol):
    """A source of allocations. Methods raise `ProviderError`; an error never means that nothing exists."""

    @property
    def name(self) -> str:
        """The provider's name in plans and in the ledger."""
        ...

    async def preflight(self) -> None:
        """Raise when `acquire` could not work, before anything is spent."""
        ...

    async def quote(self, spec: Spec) -> Quote:
        """The price of what `acquire` would return."""
        ...

    async def devices(self, spec: Spec) -> tuple[Device, ...]:
        """Every device that `acquire` might return, without logging in anywhere; empty where nothing is known."""
        ...

    async def acquire(self, spec: Spec, run_id: str, on_phase: OnPhase | None = None) -> Lease:
        """The allocation called `spec.name`: created, or adopted when an earlier attempt created it.

        A creation whose answer was lost is searched for by name and never repeated, so that no second machine is
        billed. Where none is listed it raises `create_unanswered`; the intent stays in the ledger and is checked again.
        """
        ...

    async def wait_ready(self, lease: Lease, on_phase: OnPhase | None = None) -> Lease:
        """The lease with the address at which its SSH server answers now; `on_phase` receives what is waited for.

        Raises `allocation_gone` when the allocation no longer exists.
        """
        ...

    async def open_session(self, lease: Lease) -> SshSession:
        """A session to a ready allocation; raises `RemoteError` with the link's codes."""
        ...

    async def observe(self, lease: Lease) -> Observation:
        """The allocation's state now; `unknown` when it cannot be determined."""
        ...

    async def release(self, lease: Lease) -> bool:
        """Terminate the allocation; idempotent. Raises `release_failed` with what is left and where.

        True if the provider confirmed the termination. Without that, one that is not listed may be listed again.
        """
        ...

    async def prove_empty(self, scope: Scope) -> EmptyProof:
        """Count the allocations of the scope that still exist."""
        ...

    async def reconcile(self, ledger: Sequence[LedgerEntry]) -> Reconciliation:
        """Compare this provider's part of the ledger with what exists."""
        ...

    async def close(self) -> None:
        """Close connections; the provider can be used again afterwards."""
        ...


@runtime_checkable
class Exclusive(Protocol):
    """A provider whose machines exist before a run and take one run at a time, across homes and operators."""

    async def claim(self, spec: Spec, run_id: str) -> str | None:
        """Claim the machine that `acquire` would return, or renew the run's claim.

        Returns None when the run holds the claim, otherwise a phrase that says who does. A claim lasts as long as the
        run's supervisor; before there is one it must be renewed every few minutes. `release` gives it up too. Raises
        `RemoteError`.
        """
        ...

    async def let_go(self, spec: Spec, run_id: str) -> None:
        """Give up a claim for which nothing was acquired; no error without a claim. Raises `RemoteError`."""
        ...


def allocation_name(install: str, run_id: str) -> str:
    """A new name `glasshouse-INSTALL-RUN-RANDOM`, one per attempt to acquire."""
    return f"glasshouse-{install}-{run_id}-{secrets.token_hex(4)}"
