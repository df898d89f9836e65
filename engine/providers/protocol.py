"""What the runner knows of a provider: frozen records, and verbs that every member shares.

Order of a run: `preflight`, `quote`, then the ledger holds the intent, `acquire`, `wait_ready`,
`open_session`; after the run `release` and `prove_empty`. At every start `reconcile` compares ledger and
provider.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
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
    """What to acquire. `name` is unique to one attempt and in the ledger before `acquire`.

    `gpus` are acceptable models in order of preference; prices in USD, `max_price` an hour, `max_cost` for
    the whole life of the allocation. `host` is a static host's name. `max_seconds`: it ends itself after that.
    """

    name: str
    gpus: tuple[str, ...] = ()
    host: str | None = None
    max_price: float | None = None
    max_cost: float | None = None
    disk_gb: int = 40
    max_seconds: float = 24 * 3600.0


class Quote(_Record, frozen=True, kw_only=True):
    """What `acquire` would give now. `price_per_hour` in USD."""

    provider: str
    gpu_model: str
    price_per_hour: float


class Address(_Record, frozen=True, kw_only=True):
    """Where an SSH server is. `host_key` is its pinned public key; the client key stays in its file, or in the agent
    that listens at `agent_path`.
    """

    host: str
    port: int
    user: str
    host_key: str
    client_key_path: str | None = None
    agent_path: str | None = None


class Lease(_Record, frozen=True, kw_only=True):
    """One allocation that is ours, without secrets: a restarted runner goes on from it.

    `address` is None until `wait_ready`. `python` and `site_paths` are the interpreter and the folders of
    third-party Python there; `environment` says where those come from: `own` are the operator's, `image` lie there
    already, `lock` are yet to be installed from the hash-checked lock, by pip from its default index or from `index`.
    `root` is a folder for run folders, below the
    login's home unless absolute. `machine` identifies the machine as the provider knows it. `heartbeat` is a file
    there that its dead-man's switch watches; `deadline` (UTC) is when the allocation ends at the latest.
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
    address: Address | None = None

    def endpoint(self) -> Endpoint:
        """What an SSH session needs; raises `ProviderError` (`allocation_not_ready`) before `wait_ready`."""
        if self.address is None:
            raise ProviderError("This allocation is not ready yet.", code="allocation_not_ready")
        address = self.address
        return Endpoint(
            host=address.host,
            port=address.port,
            user=address.user,
            client_key=None if address.client_key_path is None else Path(address.client_key_path),
            agent_path=address.agent_path,
            host_key=address.host_key,
        )


class Scope(_Record, frozen=True, kw_only=True):
    """What a proof is about: every name that a run ever put into the ledger, and the leases it got."""

    names: tuple[str, ...]
    leases: tuple[Lease, ...] = ()


class EmptyProof(_Record, frozen=True, kw_only=True):
    """A counted observation: `count` of the scope's allocations exist, `others` is what else the provider
    lists.

    `listings` successful looks agreed, the last at `at` (UTC). `count` is None where nothing is ours to
    delete. `unanswered` are names that were asked for without a clear answer, and may still appear.
    """

    scope: tuple[str, ...]
    listings: int
    count: int | None
    others: int | None
    at: str
    statement: str
    unanswered: tuple[str, ...] = ()


class LedgerEntry(_Record, frozen=True, kw_only=True):
    """One allocation as the ledger knows it; `lease` is None when only the intent was written."""

    name: str
    lease: Lease | None = None


class Found(_Record, frozen=True, kw_only=True):
    """One allocation that exists. `lease` is None where it cannot be taken up again.

    What the provider tells of it, None where it does not: `since` in UTC, `price_per_hour` in USD.
    """

    name: str
    observation: Observation
    lease: Lease | None = None
    allocation_id: str | None = None
    gpu_model: str | None = None
    price_per_hour: float | None = None
    since: str | None = None


class Reconciliation(_Record, frozen=True, kw_only=True):
    """Ledger against provider: `ours` exist and are known, `gone` are known only, `foreign` exist only."""

    ours: tuple[Found, ...] = ()
    gone: tuple[str, ...] = ()
    foreign: tuple[Found, ...] = ()


@runtime_checkable
class Provider(Protocol):
    """A source of allocations. Verbs raise `ProviderError`; an error never means that there is nothing."""

    @property
    def name(self) -> str:
        """The provider's name in plans and in the ledger."""
        ...

    async def preflight(self) -> None:
        """Raise when `acquire` could not work, before anything is spent."""
        ...

    async def quote(self, spec: Spec) -> Quote:
        """The price of what `acquire` would give."""
        ...

    async def acquire(self, spec: Spec, run_id: str, on_phase: OnPhase | None = None) -> Lease:
        """The allocation called `spec.name`: made, or taken up when an earlier attempt made it.

        A creation whose answer was lost is looked for by name, never repeated; where nothing is found it raises
        `create_unanswered`, and the ledger keeps the intent to be looked at again.
        """
        ...

    async def wait_ready(self, lease: Lease, on_phase: OnPhase | None = None) -> Lease:
        """The lease with the address at which its SSH server answers now; `on_phase` hears what is waited
        for.

        Raises `allocation_gone` when the allocation no longer exists.
        """
        ...

    async def open_session(self, lease: Lease) -> SshSession:
        """A session to a ready allocation; raises `RemoteError` with the link's codes."""
        ...

    async def observe(self, lease: Lease) -> Observation:
        """The allocation's state now; `unknown` when it cannot be told."""
        ...

    async def release(self, lease: Lease) -> None:
        """End the allocation; done already is done. Raises `release_failed` with what is left and where."""
        ...

    async def prove_empty(self, scope: Scope) -> EmptyProof:
        """Count what exists of the scope."""
        ...

    async def reconcile(self, ledger: Sequence[LedgerEntry]) -> Reconciliation:
        """Compare this provider's part of the ledger with what exists."""
        ...

    async def close(self) -> None:
        """Let go of connections; the provider can be used again."""
        ...


def allocation_name(install: str, run_id: str) -> str:
    """A new name `glasshouse-INSTALL-RUN-RANDOM`, one for each attempt to acquire."""
    return f"glasshouse-{install}-{run_id}-{secrets.token_hex(4)}"
