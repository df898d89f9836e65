"""One pod: its order, its phase and its container."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tests.fake_runpod.container import HOST, Container, Image, Log, held_port
from tests.fake_runpod.faults import ActiveFaults, number
from tests.fake_runpod.views import PastPod, PodView

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fake_runpod.views import Phase, Settings

SSH_PORT: Final = "22/tcp"
PRIVATE_IP: Final = "10.0.0.7"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Order:
    """A client's order, from either API. `args` replaces the image's command unless it is empty."""

    name: str
    image: str
    args: str
    env: dict[str, str]
    disk: int
    ports: tuple[str, ...]
    gpu: str
    count: int
    cloud: str


@dataclass(eq=False)
class Pod:
    """`price` in USD per hour; `phase` is `pulling`, `starting` (no ports yet), `running`, or `exited`."""

    order: Order
    price: float
    gpu_name: str
    folder: Path
    faults: ActiveFaults
    foreign: bool
    id: str = field(default_factory=lambda: secrets.token_hex(7))
    key: str = field(default_factory=lambda: "rpa_pod_" + secrets.token_hex(16))
    created: float = field(default_factory=time.monotonic)
    created_at: str = field(default_factory=_now)
    phase: Phase = "pulling"
    started_at: str | None = None
    started: float = 0.0
    ended: float | None = None
    ended_by: str | None = None
    log: Log = field(default_factory=Log)
    container: Container = field(init=False)
    machine_id: str = field(default_factory=lambda: secrets.token_hex(6))
    _life: asyncio.Task[None] | None = None
    _starting: asyncio.Task[None] | None = None
    _generation: int = 0
    _container_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def build(self, settings: Settings, base_url: str) -> None:
        """Create its container, without starting it."""
        ssh_after = self.faults.pod_fault("ssh_after")
        small = self.faults.pod_fault("small_disk")
        other = self.faults.pod_fault("other_host_key")
        self.folder.mkdir(parents=True)
        held = held_port()
        image = Image(
            args=self.order.args,
            env=self._environment(base_url, held.getsockname()[1]),
            ssh_delay=settings.ssh_delay if ssh_after is None else number(ssh_after, "seconds", 1.0),
            other_host_key=other is not None,
            print_other=other is not None and bool(other.how.get("printed", False)),
            other_client_key=self.faults.pod_fault("other_client_key") is not None,
            disk_mib=0 if small is None else int(number(small, "mib", 16)),
        )
        self.container = Container(self.folder, image, held, self.log, self._exited)

    def _environment(self, base_url: str, port: int) -> dict[str, str]:
        """The order's environment, and the variables that RunPod adds."""
        public = {"RUNPOD_PUBLIC_IP": HOST, "RUNPOD_TCP_PORT_22": str(port)} if self.is_public else {}
        return {
            **self.order.env,
            "RUNPOD_POD_ID": self.id,
            "RUNPOD_API_KEY": self.key,
            "RUNPOD_API_BASE_URL": base_url,
            "RUNPOD_POD_HOSTNAME": f"{self.id}-64411eb2",
            "RUNPOD_GPU_COUNT": str(self.order.count),
            "RUNPOD_CPU_COUNT": "8",
            "RUNPOD_MEM_GB": "62",
            "RUNPOD_DC_ID": "US-KS-2",
            **public,
        }

    @property
    def is_public(self) -> bool:
        """Whether port 22 was requested and gets a public address."""
        return SSH_PORT in self.order.ports and self.faults.pod_fault("private_port") is None

    @property
    def uptime(self) -> int:
        """Seconds since its container started; 0 without one."""
        return int(time.monotonic() - self.started) if self.phase in {"starting", "running"} else 0

    def begin(self, settings: Settings) -> None:
        """Begin its phases: the image is pulled, the container starts, ports are assigned."""
        self._life = asyncio.create_task(self._run_phases(settings))

    async def _run_phases(self, settings: Settings) -> None:
        if self.faults.pod_fault("pull_forever"):
            return
        await asyncio.sleep(settings.pull_seconds)
        await self._start(wipe=True)
        await asyncio.sleep(settings.port_seconds)
        if self.phase == "starting" and not self.faults.pod_fault("no_port"):
            self.phase = "running"

    async def _start(self, *, wipe: bool) -> None:
        """Start its container; shielded from cancellation, so that no process is left behind."""
        generation = self._generation
        self._starting = asyncio.create_task(self._start_container(generation, wipe))
        await asyncio.shield(self._starting)

    async def _start_container(self, generation: int, wipe: bool) -> None:
        async with self._container_lock:
            if generation == self._generation:
                self.phase, self.started_at, self.started = "starting", _now(), time.monotonic()
                await self.container.start(wipe=wipe)

    async def stop(self) -> None:
        """Kill the container and keep the pod."""
        await self._kill_container()
        self.phase = "exited"

    async def resume(self, settings: Settings) -> None:
        """Start a stopped pod again, with an empty disk."""
        if self.phase == "exited":
            self.phase = "pulling"
            self.begin(settings)

    async def restart(self, *, wipe: bool) -> None:
        """Start a new container at the same address."""
        await self._kill_container()
        await self._start(wipe=wipe)
        self.phase = "running"

    async def terminate(self, by: str) -> None:
        """Remove the pod."""
        if self.ended is None:
            self.ended, self.ended_by = time.monotonic(), by
        await self._kill_container()
        self.phase = "exited"
        await self.container.discard()
        self.log.wake()

    async def _kill_container(self) -> None:
        self._generation += 1
        life, self._life = self._life, None
        if life is not None:
            life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await life
        async with self._container_lock:
            await self.container.kill()

    def _exited(self) -> None:
        self.phase = "exited"

    def view(self) -> PodView:
        """Its actual state."""
        return PodView(
            id=self.id,
            name=self.order.name,
            status=self.phase,
            gpu=self.order.gpu,
            price=self.price,
            host=HOST,
            port=self.container.port,
            folder=str(self.folder),
            env=dict(self.container.image.env),
            pid=self.container.pid,
            created_at=self.created_at,
        )

    def past(self) -> PastPod:
        """Its history."""
        return PastPod(
            id=self.id,
            name=self.order.name,
            price=self.price,
            foreign=self.foreign,
            created=self.created,
            ended=self.ended,
            ended_by=self.ended_by,
        )
