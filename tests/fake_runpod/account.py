"""The account: its key, its pods, the catalogue and the recorded calls."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.fake_runpod.faults import ActiveFaults, Faults, number
from tests.fake_runpod.pod import SSH_PORT, Order, Pod
from tests.fake_runpod.views import Gpu, Rule, Settings

if TYPE_CHECKING:
    from tests.fake_runpod.views import Call

NO_CAPACITY: Final = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
NO_BALANCE: Final = "Your account balance is too low to deploy this pod."
ACCOUNT_PUBLIC_KEY: Final = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG9gUpXFG7LW+YToCOxtE2jEFzdu4eQSYSGfbfXy5yke account@example"
)
"""Registered with the account; its private key does not exist."""
CATALOGUE: Final = (
    Gpu(id="NVIDIA RTX A2000", name="RTX A2000", memory=6, secure=0.12, community=0.1),
    Gpu(id="NVIDIA L4", name="L4", memory=24, secure=0.43),
    Gpu(id="NVIDIA GeForce RTX 4090", name="RTX 4090", memory=24, secure=0.69, community=0.34),
    Gpu(id="NVIDIA A100 80GB PCIe", name="A100 PCIe", memory=80, secure=1.64, community=1.19),
    Gpu(id="NVIDIA H100 80GB HBM3", name="H100 SXM", memory=80, secure=2.99, community=2.69),
    Gpu(id="NVIDIA H200", name="H200 SXM", memory=141, secure=3.99, stock="none"),
)


class RefusedError(Exception):
    """The account refuses; `status` is the HTTP status in v2."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Account:
    """The actual state, whatever the APIs report."""

    def __init__(self, folder: Path, key: str, settings: Settings) -> None:
        self.folder = folder
        self.key = key
        self.settings = self._first = settings
        self.base_url = ""
        self.gpus: tuple[Gpu, ...] = CATALOGUE
        self.faults = Faults()
        self.calls: list[Call] = []
        self.ever: list[Pod] = []
        self._listed_until: dict[str, float] = {}
        self._unlisted_until: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def existing(self) -> list[Pod]:
        """Every pod that exists."""
        return [pod for pod in self.ever if pod.ended is None]

    def listed(self) -> list[Pod]:
        """Every pod that the APIs list: those that exist, and those that linger after their termination."""
        now = time.monotonic()
        return [
            pod
            for pod in self.ever
            if (pod.ended is None or self._listed_until.get(pod.id, 0.0) > now)
            and self._unlisted_until.get(pod.id, 0.0) <= now
        ]

    def appear(self, pod_id: str) -> None:
        """List a pod again that `unlisted` hides."""
        self._unlisted_until.pop(pod_id, None)

    def find(self, pod_id: str) -> Pod:
        """A listed pod; raises `RefusedError`."""
        for pod in self.listed():
            if pod.id == pod_id:
                return pod
        raise RefusedError(404, "pod not found")

    def pod_of_key(self, key: str) -> Pod | None:
        """The existing pod whose own key this is."""
        return next((pod for pod in self.existing() if secrets.compare_digest(pod.key, key)), None)

    def gpu(self, gpu_id: str) -> Gpu | None:
        """One type of the catalogue."""
        return next((gpu for gpu in self.gpus if gpu.id == gpu_id), None)

    def price(self, order: Order) -> tuple[Gpu, float]:
        """The price of an order per hour; raises `RefusedError` if it is not available."""
        gpu = self.gpu(order.gpu)
        if gpu is None:
            raise RefusedError(400, f"gpu type {order.gpu} is not known")
        prices = {"SECURE": gpu.secure, "COMMUNITY": gpu.community}.get(order.cloud, gpu.secure or gpu.community)
        if prices is None or gpu.stock == "none" or order.count > gpu.most:
            raise RefusedError(400, NO_CAPACITY)
        return gpu, round(prices * order.count, 6)

    def create(self, order: Order, faults: ActiveFaults, *, foreign: bool = False) -> Pod:
        """Create a pod, or two of the same name if that is scripted; raises `RefusedError`."""
        gpu, price = self.price(order)
        price_rule = faults.pod_fault("price")
        if price_rule is not None:
            price = number(price_rule, "price", price * 2)
        created = []
        for _ in range(2 if faults.pod_fault("twin") else 1):
            pod = Pod(order, price, gpu.name, Path(), faults, foreign)
            pod.folder = self.folder / "pods" / pod.id
            pod.build(self.settings, self.base_url)
            self.ever.append(pod)
            pod.begin(self.settings)
            created.append(pod)
        return created[0]

    def foreign(self, name: str, gpu: str) -> Pod:
        """Create a pod as another user of this account."""
        order = Order(name, "someone/image:1", "", {"PUBLIC_KEY": ACCOUNT_PUBLIC_KEY}, 20, (SSH_PORT,), gpu, 1, "ALL")
        return self.create(order, ActiveFaults(), foreign=True)

    async def terminate(self, pod_id: str, by: str, linger: Rule | None = None, unlisted: Rule | None = None) -> None:
        """Terminate a pod; raises `RefusedError` if it is not listed, or is `unlisted` from now on, and billed."""
        if unlisted is not None:
            self._unlisted_until[pod_id] = time.monotonic() + number(unlisted, "seconds", float("inf"))
        pod = self.find(pod_id)
        if linger is not None and pod.ended is None:
            self._listed_until[pod.id] = time.monotonic() + number(linger, "seconds", 1.0)
        await pod.terminate(by)

    def keep_task(self, work: asyncio.Task[None]) -> None:
        """Keep a reference to a task until it is done."""
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)

    async def reset(self) -> None:
        """Back to the state at the start, with the same key: no pods, no calls, no faults, the first settings."""
        await self.close()
        self.ever.clear()
        self.calls.clear()
        self.faults.clear()
        self._listed_until.clear()
        self._unlisted_until.clear()
        self.gpus, self.settings = CATALOGUE, self._first

    async def close(self) -> None:
        """Terminate every pod."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*(pod.terminate("fake") for pod in self.existing()))
