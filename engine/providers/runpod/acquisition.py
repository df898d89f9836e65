"""One attempt to get a pod: asked for once, looked for by its exact name, checked against its price, or ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from engine.errors import GlasshouseError, ProviderError
from engine.providers.protocol import Lease, Spec
from engine.providers.runpod.account import HOPELESS, Account, together
from engine.providers.runpod.api.protocol import GpuOffer, Order, Pod, RateLimitedError, is_ambiguous
from engine.providers.runpod.folder import AllocationFolder, Ask, Asked, Keys
from engine.providers.runpod.gpu_choice import Choice, above_quote, choices, life, max_price
from engine.providers.runpod.lease import age, lease_of
from engine.providers.runpod.pod_order import order
from engine.providers.settings import RunPodSettings
from engine.system.clock import boot_id, boot_seconds
from engine.system.shield import run_to_completion
from engine.wire import utc_now

NEXT_GPU: Final = frozenset({"no_capacity", "order_refused"})
"""Refusals after which another type of GPU is asked for."""

Say = Callable[[str], None]


class Acquisition:
    """The pod called `spec.name`; `run` once, and `undo` when `run` was cancelled."""

    def __init__(
        self,
        account: Account,
        settings: RunPodSettings,
        folder: AllocationFolder,
        spec: Spec,
        run_id: str,
        say: Say,
    ) -> None:
        self._account = account
        self._settings = settings
        self._limits = settings.limits
        self._folder = folder
        self._spec = spec
        self._asked = Asked(name=spec.name, run_id=run_id, account=account.identity)
        self._say = say
        self._call: asyncio.Task[str] | None = None
        """The creation that was asked for last."""
        self._open = False
        """True while a pod may exist that no lease was given for."""

    async def run(self) -> Lease:
        """The lease; raises `ProviderError`, and unless the code says otherwise no pod is left."""
        earlier = self._folder.asked()
        if earlier is not None and earlier.open is not None:
            self._asked, self._open = earlier, True
            pod = await self._searched(max(self._limits.search - age(earlier.open), self._limits.listings_apart))
            return await self._checked(pod, earlier.open)
        self._say("asking for prices")
        offered = choices(await self._offers(), self._spec, self._settings)
        keys = self._folder.make()
        refusals: list[GlasshouseError] = []
        for choice in offered:
            try:
                return await self._one(choice, keys)
            except ProviderError as error:
                if error.code not in NEXT_GPU:
                    raise
                refusals.append(error)
                self._say(f"{choice.model}: {error.message}")
        self._folder.destroy()
        raise next((error for error in refusals if error.code != "no_capacity"), refusals[-1])

    async def _offers(self) -> tuple[GpuOffer, ...]:
        """The types of GPU with their prices, after any pause that RunPod asks for."""
        give_up = boot_seconds() + self._limits.provisioning
        while True:
            try:
                return await self._account.prices.offers()
            except RateLimitedError as error:
                await self._pause(error, give_up)

    async def undo(self) -> None:
        """End what a cancelled `run` made or may have made; raises `leaked` where that cannot be proven."""
        if not self._open:
            self._folder.destroy()
            return
        ids: tuple[str, ...] = ()
        if self._call is not None:
            try:
                ids = (await self._call,)
            except Exception as error:  # whatever it was, the name tells what came of it
                if isinstance(error, GlasshouseError) and _is_definite(error):
                    self._folder.destroy()
                    return
        ask = self._asked.open
        if not ids and ask is not None:
            pods = await self._appeared(max(self._limits.search - age(ask), self._limits.listings_apart))
            ids = tuple(pod.id for pod in pods)
            if not ids:
                return  # the ledger's intent is looked at again at every start
        await self._account.end(self._spec.name, ids, ask.price_per_hour if ask else None)
        self._folder.destroy()

    async def _one(self, choice: Choice, keys: Keys) -> Lease:
        """Ask for one type of GPU, once; a pause that RunPod asked for leads to one more asking."""
        seconds = life(self._spec, self._settings, choice.price)
        wanted = order(self._spec, self._settings, choice, keys, seconds)
        give_up = boot_seconds() + self._limits.provisioning
        while True:
            ask = self._write(choice, seconds)
            self._say(f"asking for {choice.model} at ${choice.price:.2f} an hour")
            try:
                pod_id = await self._create(wanted)
            except RateLimitedError as error:
                found = await self._after_pause(error, give_up)
                if found is None:
                    self._settle()
                    continue
                return await self._checked(found, ask)
            except GlasshouseError as error:
                if _is_definite(error):
                    self._settle()
                    if error.code not in NEXT_GPU:
                        self._folder.destroy()
                    raise
                self._say(f"no clear answer ({error.code}); looking for {self._spec.name}")
                return await self._checked(await self._searched(self._limits.search), ask)
            return await self._checked(await self._seen(pod_id, ask), ask)

    async def _create(self, wanted: Order) -> str:
        """The call goes on when this is cancelled: `undo` waits for what it makes."""
        self._open = True
        self._call = asyncio.ensure_future(self._account.api.create_pod(wanted))
        return await asyncio.shield(self._call)

    async def _after_pause(self, error: RateLimitedError, give_up: float) -> Pod | None:
        """Wait as long as RunPod asks; then the pod that was made all the same, or None."""
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
        """Wait as long as RunPod asks, counting down; raises `error` where that is beyond `give_up`."""
        until = boot_seconds() + error.retry_after
        if until > give_up:
            raise error
        while (left := until - boot_seconds()) > 0:
            self._say(f"RunPod asks for a pause: {left:.0f} s left")
            await asyncio.sleep(min(1.0, left))

    async def _searched(self, seconds: float) -> Pod:
        """The one pod of this name, looked for `seconds` long; raises `create_unanswered`, `create_duplicated`."""
        pods = await self._appeared(seconds)
        if not pods:
            raise self._unanswered()
        return await self._single(pods)

    async def _appeared(self, seconds: float, pod_id: str = "") -> list[Pod]:
        """Every pod of this name as soon as one is listed; empty when none is for `seconds`."""
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
            self._say(f"looking for {self._spec.name}: {max(0.0, until - boot_seconds()):.0f} s left")
            await asyncio.sleep(min(self._limits.poll, max(0.0, until - boot_seconds())))

    async def _seen(self, pod_id: str, ask: Ask) -> Pod:
        """The made pod as it is listed; one that is not listed in time is ended."""
        await asyncio.sleep(together(self._limits))
        pods = await self._appeared(self._limits.search, pod_id)
        if pods:
            return await self._single(pods)
        await self._end(pod_id, ask)
        raise ProviderError(
            f"RunPod made pod {pod_id} but never listed it; it was asked to end.",
            "Start a new run.",
            code="allocation_gone",
        )

    async def _single(self, pods: list[Pod]) -> Pod:
        """The only pod of the name; several are all ended."""
        if len(pods) == 1:
            return pods[0]
        ids = [pod.id for pod in pods]
        await run_to_completion(self._account.end(self._spec.name, ids))
        self._ended()
        raise ProviderError(
            f"RunPod made {len(pods)} pods called {self._spec.name}, {' and '.join(sorted(ids))}; all were ended.",
            "Tell RunPod, and look at what it bills.",
            code="create_duplicated",
        )

    async def _checked(self, pod: Pod, ask: Ask) -> Lease:
        """The pod's lease; one that costs more than was quoted, or than the ceiling allows, is ended."""
        pod = await self._priced(pod, ask)
        price, ceiling = pod.price_per_hour, max_price(self._spec, self._settings)
        if price is None:
            await self._end(pod.id, ask)
            raise ProviderError(
                f"RunPod does not tell what pod {pod.id} costs; it was ended.", "Try again.", code="price_unknown"
            )
        limit = ask.price_per_hour if ceiling is None else min(ask.price_per_hour, ceiling)
        fault = above_quote(pod.id, price, limit)
        if fault is not None:
            await self._end(pod.id, ask)
            raise fault
        if self._folder.host_key() is None:
            await self._end(pod.id, ask)
            raise ProviderError(
                f"The keys of pod {pod.id} are not in {self._folder.path}; it was ended.",
                "Start a new run.",
                code="allocation_unknown",
            )
        self._open = False
        return lease_of(pod, self._folder, self._asked, self._settings)

    async def _priced(self, pod: Pod, ask: Ask) -> Pod:
        """The pod with its price, waited for while RunPod does not tell it."""
        until = boot_seconds() + self._limits.search
        while pod.price_per_hour is None and boot_seconds() < until:
            await asyncio.sleep(self._limits.poll)
            pods = await self._appeared(0.0, pod.id)
            pod = await self._single(pods) if pods else pod
        return pod

    async def _end(self, pod_id: str, ask: Ask) -> None:
        await run_to_completion(self._account.end(self._spec.name, (pod_id,), ask.price_per_hour))
        self._ended()

    def _ended(self) -> None:
        self._open = False
        self._folder.destroy()

    def _named(self, pods: tuple[Pod, ...], pod_id: str = "") -> list[Pod]:
        return [pod for pod in pods if pod.name == self._spec.name or pod.id == pod_id]

    def _write(self, choice: Choice, seconds: float) -> Ask:
        ask = Ask(
            gpu=choice.gpu,
            gpu_model=choice.model,
            price_per_hour=choice.price,
            seconds=seconds,
            asked_at=utc_now(),
            boot_id=boot_id(),
            asked_boot=boot_seconds(),
        )
        self._asked = msgspec.structs.replace(self._asked, asks=(*self._asked.asks, ask))
        self._folder.write_asked(self._asked)
        return ask

    def _settle(self) -> None:
        """Nothing was made of what was asked for last."""
        settled = msgspec.structs.replace(self._asked.asks[-1], settled=True)
        self._asked = msgspec.structs.replace(self._asked, asks=(*self._asked.asks[:-1], settled))
        self._folder.write_asked(self._asked)
        self._open = False

    def _unanswered(self) -> ProviderError:
        return ProviderError(
            f"RunPod did not tell whether it made {self._spec.name}, and no pod of that name is listed.",
            "Nothing else is asked for; the name is looked for again at every start and by `glasshouse cleanup`.",
            code="create_unanswered",
        )


def _is_definite(error: GlasshouseError) -> bool:
    """True when the refusal itself proves that nothing was made."""
    return not (isinstance(error, RateLimitedError) or (isinstance(error, ProviderError) and is_ambiguous(error)))
