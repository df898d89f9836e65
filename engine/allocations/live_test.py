"""The live self-test: one cheap pod under a stated ceiling is rented, inspected, terminated and proven gone.

It uses the provider protocol and the ledger only, as a run does. Whatever fails, the pod is terminated and proven gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec

from engine.errors import GlasshouseError, ProviderError
from engine.providers.protocol import Lease, Provider, Quote, Spec, allocation_name
from engine.remote.examine import PARTS, Place
from engine.remote.session import SshSession
from engine.runner.allocation import installation_id
from engine.runner.end_allocation import end_allocation
from engine.runner.leases import with_end, with_lease
from engine.runner.spawn import ensure_sentinel
from engine.store.ledger import AllocationFields
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.system.shield import run_to_completion

OWNER: Final = "selftest"
"""Takes the place of a run's id in the pod's name."""
CHEAP: Final = (
    "NVIDIA RTX A2000", "NVIDIA RTX A4000", "NVIDIA RTX A4500", "NVIDIA RTX A5000", "NVIDIA L4",
    "NVIDIA GeForce RTX 3070", "NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090",
)  # fmt: skip
"""The acceptable GPUs when neither the operator nor the settings name one."""
NOT_ON_OFFER: Final = frozenset({"no_acceptable_gpu", "price_above_ceiling", "no_capacity"})
LONGEST_SECONDS: Final = 1800.0
LEAST_SECONDS: Final = 300.0
"""A ceiling that terminates the pod before this leaves no time to inspect it."""
DISK_GB: Final = 10
WATCH_SECONDS: Final = 2.0
GRACE_SECONDS: Final = 180.0
"""How long after its deadline a pod may take to terminate itself."""
ANSWER_SECONDS: Final = 60.0

_INSPECT: Final = r"""
cd "$HOME" || exit 9
[ -n "$1" ] && [ -e "$1" ] && echo heartbeat
for folder in /proc/[0-9]*; do
  tr '\0' ' ' < "$folder/cmdline" 2>/dev/null | grep -q -- "$2" && [ "${folder#/proc/}" != "$$" ] && echo switch
done
env | grep -q '^GLASSHOUSE_' && echo secrets
env | grep -q '^RUNPOD_API_KEY=' && echo key
echo inspected
"""
SWITCH: Final = ".glasshouse/deadman.py"
"""What the command line of the dead-man's switch on the pod contains."""


class Step(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One step: how long it took in seconds, and what the pod had cost by its end in USD (None: no pod yet)."""

    name: str
    passed: bool
    seconds: float
    spent: float | None
    detail: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The result of the self-test. `passed`: every step passed, and the pod is proven gone. `cost` in USD."""

    passed: bool
    gone: bool
    name: str
    allocation_id: str | None
    gpu_model: str | None
    price_per_hour: float | None
    cost: float | None
    steps: tuple[Step, ...]


class LiveTestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows. Prices in USD. `self_destruct`: seconds after which the pod is to terminate itself."""

    max_cost: float
    max_price: float | None = None
    gpus: tuple[str, ...] = CHEAP
    self_destruct: float | None = None

    def spec(self, name: str, gpus: Sequence[str] | None = None) -> Spec:
        """What to acquire under this name."""
        return Spec(
            name=name,
            gpus=self.gpus if gpus is None else tuple(gpus),
            max_price=self.max_price,
            max_cost=self.max_cost,
            disk_gb=DISK_GB,
            max_seconds=LONGEST_SECONDS if self.self_destruct is None else self.self_destruct,
        )


async def cheapest(provider: Provider, options: LiveTestOptions) -> tuple[Quote, tuple[str, ...]]:
    """The lowest quote for an acceptable GPU, and the names of all GPUs on offer, cheapest first.

    Raises `ProviderError`: the last GPU's error if none is on offer, `ceiling_too_low` if the ceiling buys less
    than `LEAST_SECONDS`.
    """
    await provider.preflight()
    quotes: list[tuple[float, str, Quote]] = []
    refusal: ProviderError | None = None
    for gpu in options.gpus:
        try:
            quote = await provider.quote(options.spec("quote", [gpu]))
        except ProviderError as error:
            if error.code not in NOT_ON_OFFER:
                raise
            refusal = error
        else:
            quotes.append((quote.price_per_hour, gpu, quote))
    if not quotes:
        raise refusal or ProviderError("No acceptable GPU is named.", "Name one with --gpu.", code="no_acceptable_gpu")
    quotes.sort(key=lambda entry: entry[:2])
    best = quotes[0][2]
    if best.price_per_hour > 0 and options.max_cost / best.price_per_hour * 3600 < LEAST_SECONDS:
        raise ProviderError(
            f"{options.max_cost:g} USD buy less than {LEAST_SECONDS / 60:.0f} minutes of {best.gpu_model} at "
            f"{best.price_per_hour:g} USD an hour.",
            "Give a higher --max-cost.",
            code="ceiling_too_low",
        )
    return best, tuple(gpu for _, gpu, _ in quotes)


class SelfTest:
    """One self-test. `on_step` is called with each step once it is over, `on_phase` with what is being waited for."""

    def __init__(
        self,
        home: Path,
        provider: Provider,
        options: LiveTestOptions,
        gpus: Sequence[str],
        *,
        on_step: Callable[[Step], None] = lambda _: None,
        on_phase: Callable[[str], None] | None = None,
    ) -> None:
        """`gpus` as `cheapest` returned them."""
        self._home = home
        self._provider = provider
        self._options = options
        self._gpus = tuple(gpus)
        self._on_step = on_step
        self._on_phase = on_phase
        self._writer = Writer(home)
        self._reader = Reader(home)
        self._id = secrets.token_hex(6)
        self._name = allocation_name(installation_id(self._writer, self._reader), OWNER)
        self._lease: Lease | None = None
        self._requested_at: float | None = None
        self._steps: list[Step] = []

    async def run(self) -> Outcome:
        """Run every step; the pod is terminated and proven gone even when this is cancelled meanwhile."""
        # Nobody else terminates what a running process has claimed; if it dies, the sentinel does at the deadline.
        self._writer.claim_allocation(self._id)
        self._writer.allocation_intent(self._id, self._provider.name, self._name, None, **self._latest_end())
        try:
            ensure_sentinel(self._home)
            with contextlib.suppress(GlasshouseError):  # reported as a failed step; the pod is terminated next
                await self._inspect()
        finally:
            gone = await run_to_completion(self._end())
            self._writer.release_allocation(self._id)
            outcome = self._outcome(gone=gone)
            self._writer.close()
            self._reader.close()
        return outcome

    def _latest_end(self) -> AllocationFields:
        """The sentinel's deadline: after that of the pod's own switch, if that switch is to be tested."""
        if self._options.self_destruct is None:
            return AllocationFields()
        return with_end(LONGEST_SECONDS + self._options.self_destruct + GRACE_SECONDS)

    async def _inspect(self) -> None:
        await self._step("rent", self._rent)
        await self._step("ready", self._ready)
        await self._step("login", self._log_in)
        for name, check in PARTS:
            await self._step(name, partial(self._try, check))
        if self._options.self_destruct is not None:
            await self._step("self-destruct", self._watch)

    async def _end(self) -> bool:
        try:
            await self._step("proof", self._prove)
        except GlasshouseError:
            return False
        return True

    async def _step(self, name: str, action: Callable[[], Awaitable[str]]) -> None:
        began = time.monotonic()
        try:
            detail, passed = await action(), True
        except GlasshouseError as error:
            detail, passed = f"{error.code}: {error.message}", False
            raise
        except BaseException as error:
            detail, passed = type(error).__name__, False
            raise
        finally:
            step = Step(
                name=name, passed=passed, seconds=round(time.monotonic() - began, 3), spent=self._spent(), detail=detail
            )
            self._steps.append(step)
            self._on_step(step)

    async def _rent(self) -> str:
        self._requested_at = time.monotonic()
        spec = self._options.spec(self._name, self._gpus)
        try:
            lease = await self._provider.acquire(spec, OWNER, self._on_phase)
        except GlasshouseError as error:
            self._writer.allocation_state(self._id, "intent", f"{error.code}: {error.message}")
            raise
        self._keep(lease, "created")
        return (
            f"{lease.gpu_model}, pod {lease.allocation_id}, terminates itself at {lease.deadline or 'no stated time'}"
        )

    async def _ready(self) -> str:
        lease = await self._provider.wait_ready(self._leased(), self._on_phase)
        self._keep(lease, "ready")
        return "an SSH server answers with the pinned host key"

    async def _log_in(self) -> str:
        lease = self._leased()
        async with await self._provider.open_session(lease) as session:
            done = await session.run(
                ["sh", "-c", _INSPECT, "inspect", lease.heartbeat or "", SWITCH], timeout=ANSWER_SECONDS
            )
        report = done.stdout.decode("utf-8", "replace").split()
        if "inspected" not in report:
            raise ProviderError(
                "The pod could not be inspected.", "See its log at the provider.", code="pod_unreadable"
            )
        if "switch" not in report or (lease.heartbeat and "heartbeat" not in report):
            raise ProviderError(
                "The dead-man's switch, which terminates a forgotten pod, is not running on the pod.",
                "Do not rent with this image.",
                code="switch_not_armed",
            )
        if "secrets" in report or "key" in report:
            raise ProviderError(
                "The environment of a login on the pod contains secrets.",
                "Do not rent with this image.",
                code="secrets_in_environment",
            )
        return "pinned host key, dead-man's switch armed, no secret in the login's environment"

    async def _try(self, check: Callable[[SshSession, Place], Awaitable[str]]) -> str:
        """One part of what a run needs of the login; nothing is left on the pod."""
        async with await self._provider.open_session(self._leased()) as session:
            return await check(session, self._leased())

    async def _watch(self) -> str:
        """Wait until the pod has terminated itself with its own key."""
        lease, observation = self._leased(), "unknown"
        latest = time.monotonic() + (self._options.self_destruct or 0.0) + GRACE_SECONDS
        while time.monotonic() < latest:
            observation = await self._provider.observe(lease)
            if observation == "gone":
                return "the pod terminated itself with its own key"
            if observation == "stopped":
                raise ProviderError(
                    "The pod stopped itself but could not terminate itself: its disk would continue to cost money.",
                    "Keep this machine on: only its local sentinel terminates such pods.",
                    code="self_destruct_stopped",
                )
            await asyncio.sleep(WATCH_SECONDS)
        raise ProviderError(
            f"The pod did not terminate itself; it is {observation}.",
            "Keep this machine on: only its local sentinel terminates such pods.",
            code="self_destruct_failed",
        )

    async def _prove(self) -> str:
        proof = await end_allocation(self._writer, self._reader, self._provider, self._entry())
        if proof.count != 0:
            raise ProviderError(
                f"The pod is not proven gone: {proof.statement}.", "See `glasshouse allocations`.", code="leaked"
            )
        others = "foreign pods were not counted" if proof.others is None else f"foreign pods, untouched: {proof.others}"
        return f"absent in {proof.listings} successful listings, {others}"

    def _keep(self, lease: Lease, state: Literal["created", "ready"]) -> None:
        self._lease = lease
        self._writer.allocation_state(self._id, state, **with_lease(lease))

    def _leased(self) -> Lease:
        if self._lease is None:
            raise ProviderError("Nothing was rented.", code="allocation_not_ready")
        return self._lease

    def _entry(self) -> AllocationView:
        entry = self._reader.allocation(self._id)
        if entry is None:
            raise RuntimeError("the ledger entry of this self-test is missing")
        return entry

    def _spent(self) -> float | None:
        """The most that the pod can have cost by now."""
        if self._lease is None or self._requested_at is None or self._lease.price_per_hour is None:
            return None
        return round(self._lease.price_per_hour * (time.monotonic() - self._requested_at) / 3600, 6)

    def _outcome(self, *, gone: bool) -> Outcome:
        lease = self._lease
        return Outcome(
            passed=gone and all(step.passed for step in self._steps),
            gone=gone,
            name=self._name,
            allocation_id=None if lease is None else lease.allocation_id,
            gpu_model=None if lease is None else lease.gpu_model,
            price_per_hour=None if lease is None else lease.price_per_hour,
            cost=self._spent(),
            steps=tuple(self._steps),
        )
