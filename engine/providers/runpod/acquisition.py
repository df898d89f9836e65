"""One attempt to get a pod: requested once, found by its exact name, and terminated if it costs more than quoted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from engine.errors import GlasshouseError, ProviderError
from engine.providers.protocol import Lease, Spec
from engine.providers.runpod.account import HOPELESS, Account, coalescing_delay
from engine.providers.runpod.api.protocol import GpuOffer, Order, Pod, RateLimitedError, is_ambiguous
from engine.providers.runpod.folder import AllocationFolder, CreateRecord, CreateRequest, Keys
from engine.providers.runpod.gpu_choice import Choice, above_quote, choices, lifetime, max_price
from engine.providers.runpod.lease import age, lease_of
from engine.providers.runpod.pod_order import order
from engine.providers.settings import RunPodSettings
from engine.system.clock import boot_id, boot_seconds
from engine.system.shield import run_to_completion
from engine.wire import utc_now

NEXT_GPU: Final = frozenset({"no_capacity", "order_refused"})
"""Refusals after which the next acceptable type of GPU is requested."""

Report = Callable[[str], None]


class Acquisition:
    """The pod called `spec.name`; `run` once, and `undo` when `run` was cancelled."""

    def __init__(
        self,
        account: Account,
        settings: RunPodSettings,
        folder: AllocationFolder,
        spec: Spec,
        run_id: str,
        report: Report,
    ) -> None:
        self._account = account
        self._settings = settings
        self._limits = settings.limits
        self._folder = folder
        self._spec = spec
        self._record = CreateRecord(name=spec.name, run_id=run_id, account=account.identity)
        self._report = report
        self._call: asyncio.Task[str] | None = None
        """The latest call that creates a pod."""
        self._open = False
        """True while a pod may exist for which no lease was returned."""

    async def run(self) -> Lease:
        """The lease. Raises `ProviderError`; no pod is left unless the code is `create_unanswered` or `leaked`."""
        earlier = self._folder.record()
        if earlier is not None and earlier.open is not None:
            self._record, self._open = earlier, True
            pod = await self._search(self._search_left(earlier.open))
            return await self._checked(pod, earlier.open)
        self._report("requesting prices")
        offered = choices(await self._offers(), self._spec, self._settings)
        keys = self._folder.create()
        refusals: list[GlasshouseError] = []
        for choice in offered:
            try:
                return await self._create(choice, keys)
            except ProviderError as error:
                if error.code not in NEXT_GPU:
                    raise
                refusals.append(error)
                self._report(f"{choice.model}: {error.message}")
        self._folder.destroy()
        raise next((error for error in refusals if error.code != "no_capacity"), refusals[-1])

    async def _offers(self) -> tuple[GpuOffer, ...]:
        """The types of GPU with their prices, after any pause that RunPod requests."""
        give_up = boot_seconds() + self._limits.provisioning
        while True:
            try:
                return await self._account.prices.offers()
            except RateLimitedError as error:
                await self._pause(error, give_up)

    async def undo(self) -> None:
        """Terminate what a cancelled `run` created or may have created; raises `leaked` where that cannot be proven."""
        if not self._open:
            self._folder.destroy()
            return
        ids: tuple[str, ...] = ()
        if self._call is not None:
            try:
                ids = (await self._call,)
            except Exception as error:  # whatever failed, the search by name below shows whether a pod exists
                if isinstance(error, GlasshouseError) and _is_definite(error):
                    self._folder.destroy()
                    return
        request = self._record.open
        if not ids and request is not None:
            pods = await self._listed(self._search_left(request))
            ids = tuple(pod.id for pod in pods)
            if not ids:
                return  # the intent stays in the ledger and is checked again at every start
        await self._account.terminate(self._spec.name, ids, request.price_per_hour if request else None)
        self._folder.destroy()

    async def _create(self, choice: Choice, keys: Keys) -> Lease:
        """Request one type of GPU, once; a rate limit leads to one more request after the pause."""
        seconds = lifetime(self._spec, self._settings, choice.price)
        pod_order = order(self._spec, self._settings, choice, keys, seconds)
        give_up = boot_seconds() + self._limits.provisioning
        while True:
            request = self._write(choice, seconds)
            self._report(f"requesting {choice.model} at ${choice.price:.2f} an hour")
            try:
                pod_id = await self._send(pod_order)
            except RateLimitedError as error:
                pod = await self._after_pause(error, give_up)
                if pod is None:
                    self._settle()
                    continue
                return await self._checked(pod, request)
            except GlasshouseError as error:
                if _is_definite(error):
                    self._settle()
                    if error.code not in NEXT_GPU:
                        self._folder.destroy()
                    raise
                self._report(f"no clear answer ({error.code}); searching for {self._spec.name}")
                return await self._checked(await self._search(self._limits.search), request)
            return await self._checked(await self._created(pod_id, request), request)

    async def _send(self, pod_order: Order) -> str:
        """The call continues when this is cancelled: `undo` waits for its result."""
        self._open = True
        self._call = asyncio.ensure_future(self._account.api.create_pod(pod_order))
        return await asyncio.shield(self._call)

    async def _after_pause(self, error: RateLimitedError, give_up: float) -> Pod | None:
        """Wait as long as RunPod requests; then return the pod that was created in spite of the refusal, or None."""
        await self._pause(error, give_up)
        while True:
            try:
                pods = self._named((await self._account.listed()).pods)
            except RateLimitedError as again:
                return await self._after_pause(again, give_up)
            except GlasshouseError as failed:
                if failed.code in HOPELESS or boot_seconds() > give_up:
                    raise self._unanswered() from failed
                await asyncio.sleep(self._limits.poll)
                continue
            return await self._single(pods) if pods else None

    async def _pause(self, error: RateLimitedError, give_up: float) -> None:
        """Wait as long as RunPod requests, counting down; raises `error` if that is beyond `give_up`."""
        until = boot_seconds() + error.retry_after
        if until > give_up:
            raise error
        while (left := until - boot_seconds()) > 0:
            self._report(f"RunPod requests a pause: {left:.0f} s left")
            await asyncio.sleep(min(1.0, left))

    def _search_left(self, request: CreateRequest) -> float:
        """How long to search for the pod of an earlier request: in full if its age is unknown."""
        return max(self._limits.search - (age(request) or 0.0), self._limits.listings_apart)

    async def _search(self, seconds: float) -> Pod:
        """The one pod of this name, searched for `seconds`; raises `create_unanswered`, `create_duplicated`."""
        pods = await self._listed(seconds)
        if not pods:
            raise self._unanswered()
        return await self._single(pods)

    async def _listed(self, seconds: float, pod_id: str = "") -> list[Pod]:
        """All pods of this name (or with this id) as soon as one is listed; empty if none appears for `seconds`."""
        until = boot_seconds() + seconds
        while True:
            try:
                pods = self._named((await self._account.listed()).pods, pod_id)
            except GlasshouseError as error:
                if error.code in HOPELESS:
                    raise self._unanswered() from error
                pods = []
            if pods or boot_seconds() >= until:
                return pods
            self._report(f"searching for {self._spec.name}: {max(0.0, until - boot_seconds()):.0f} s left")
            await asyncio.sleep(min(self._limits.poll, max(0.0, until - boot_seconds())))

    async def _created(self, pod_id: str, request: CreateRequest) -> Pod:
        """The new pod as it is listed; one that is not listed in time is terminated."""
        await asyncio.sleep(coalescing_delay(self._limits))
        pods = await self._listed(self._limits.search, pod_id)
        if pods:
            return await self._single(pods)
        await self._terminate(pod_id, request)
        raise ProviderError(
            f"RunPod created pod {pod_id} but never listed it; its termination was requested.",
            "Start a new run.",
            code="allocation_gone",
        )

    async def _single(self, pods: list[Pod]) -> Pod:
        """The only pod of the name; if there are several, all are terminated."""
        if len(pods) == 1:
            return pods[0]
        ids = [pod.id for pod in pods]
        await run_to_completion(self._account.terminate(self._spec.name, ids))
        self._forget()
        raise ProviderError(
            f"RunPod created {len(pods)} pods called {self._spec.name}, all now terminated: {', '.join(sorted(ids))}.",
            "Check RunPod's bill, and report this to RunPod.",
            code="create_duplicated",
        )

    async def _checked(self, pod: Pod, request: CreateRequest) -> Lease:
        """The pod's lease; a pod that costs more than was quoted, or than the ceiling allows, is terminated."""
        pod = await self._priced(pod)
        price, ceiling = pod.price_per_hour, max_price(self._spec, self._settings)
        if price is None:
            await self._terminate(pod.id, request)
            raise ProviderError(
                f"RunPod does not report the price of pod {pod.id}; it was terminated.",
                "Try again.",
                code="price_unknown",
            )
        limit = request.price_per_hour if ceiling is None else min(request.price_per_hour, ceiling)
        error = above_quote(pod.id, price, limit)
        if error is not None:
            await self._terminate(pod.id, request)
            raise error
        if self._folder.host_key() is None:
            await self._terminate(pod.id, request)
            raise ProviderError(
                f"The keys of pod {pod.id} are missing from {self._folder.path}; it was terminated.",
                "Start a new run.",
                code="allocation_unknown",
            )
        self._open = False
        return lease_of(pod, self._folder, self._record, self._settings)

    async def _priced(self, pod: Pod) -> Pod:
        """The pod with its price, which RunPod may report only some time after the creation."""
        until = boot_seconds() + self._limits.search
        while pod.price_per_hour is None and boot_seconds() < until:
            await asyncio.sleep(self._limits.poll)
            pods = await self._listed(0.0, pod.id)
            pod = await self._single(pods) if pods else pod
        return pod

    async def _terminate(self, pod_id: str, request: CreateRequest) -> None:
        await run_to_completion(self._account.terminate(self._spec.name, (pod_id,), request.price_per_hour))
        self._forget()

    def _forget(self) -> None:
        self._open = False
        self._folder.destroy()

    def _named(self, pods: tuple[Pod, ...], pod_id: str = "") -> list[Pod]:
        return [pod for pod in pods if pod.name == self._spec.name or pod.id == pod_id]

    def _write(self, choice: Choice, seconds: float) -> CreateRequest:
        """Put the request on the disk before it is sent: a restart after a crash then searches for its pod."""
        request = CreateRequest(
            gpu=choice.gpu,
            gpu_model=choice.model,
            price_per_hour=choice.price,
            seconds=seconds,
            requested_at=utc_now(),
            boot_id=boot_id(),
            requested_boot=boot_seconds(),
        )
        self._record = msgspec.structs.replace(self._record, requests=(*self._record.requests, request))
        self._folder.write_record(self._record)
        return request

    def _settle(self) -> None:
        """Record that the latest request created nothing."""
        settled = msgspec.structs.replace(self._record.requests[-1], settled=True)
        self._record = msgspec.structs.replace(self._record, requests=(*self._record.requests[:-1], settled))
        self._folder.write_record(self._record)
        self._open = False

    def _unanswered(self) -> ProviderError:
        return ProviderError(
            f"RunPod gave no clear answer whether it created {self._spec.name}, and no pod of that name is listed.",
            "No other pod is requested. Run `glasshouse cleanup` to check again; each start of glasshouse does so too.",
            code="create_unanswered",
        )


def _is_definite(error: GlasshouseError) -> bool:
    """True when the refusal itself proves that nothing was created."""
    return not (isinstance(error, RateLimitedError) or (isinstance(error, ProviderError) and is_ambiguous(error)))
