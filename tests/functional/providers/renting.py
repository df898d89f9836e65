"""Renting from the fake RunPod: one fake and one home per module, one provider with short limits per test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from engine.providers.protocol import EmptyProof, Lease, Scope, Spec
from engine.providers.runpod.provider import RunPodProvider
from engine.providers.settings import RunPodLimits, RunPodSettings, Settings
from tests.fake_runpod.client import FakeRunPod

Api = Literal["rest", "sdk"]
RUN = "0123456789ab"
APART = 0.1
CHEAP, NEXT = "RTX A2000", "L4"
rest_only = pytest.mark.parametrize("place", ["rest"], indirect=True)
"""For behaviour that does not depend on the API: tested with REST only."""


@dataclass
class Renting:
    """What one test rents. `known` are the names in the ledger; `phases` are the provider's progress reports."""

    fake: FakeRunPod
    home: Path
    api: Api
    known: list[str] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)

    def provider(self, home: Path | None = None, **limits: float) -> RunPodProvider:
        return RunPodProvider(home or self.home, self.settings(**limits))

    def settings(self, **limits: float) -> Settings:
        """Settings with short limits, except for the given ones."""
        short = {
            "api": 10.0,
            "provisioning": 20.0,
            "ssh": 20.0,
            "poll": 0.1,
            "search": 10.0,
            "listings_apart": APART,
            "terminate": 20.0,
            "helper_idle": 5.0,
        }
        runpod = RunPodSettings(api=self.api, calls_per_minute=600, limits=RunPodLimits(**{**short, **limits}))
        return Settings(runpod=runpod)

    def spec(
        self, *gpus: str, max_price: float | None = None, max_cost: float | None = None, max_seconds: float = 600.0
    ) -> Spec:
        """A spec with a new name, which counts as in the ledger from then on."""
        name = f"glasshouse-test-{RUN}-{secrets.token_hex(4)}"
        self.known.append(name)
        return Spec(name=name, gpus=gpus or (CHEAP,), max_price=max_price, max_cost=max_cost, max_seconds=max_seconds)

    async def lease(self, provider: RunPodProvider, spec: Spec | None = None) -> Lease:
        return await provider.acquire(spec or self.spec(), RUN, self.phases.append)

    async def proof(self, provider: RunPodProvider, *leases: Lease) -> EmptyProof:
        return await provider.prove_empty(Scope(names=tuple(self.known), leases=leases))

    def ours(self) -> list[str]:
        """The ids of the pods that exist under names in the ledger, whatever the API reports."""
        return [pod.id for pod in self.fake.pods() if pod.name in self.known]

    def folders(self) -> list[str]:
        """The allocations whose private folder still exists."""
        return [name for name in self.known if (self.home / "allocations" / name).exists()]

    def call_count(self, op: str) -> int:
        """How many calls of one operation were made with the account's key."""
        return sum(call.caller == "account" for call in self.fake.calls(op))


@dataclass(frozen=True)
class Place:
    """Shared by the tests of one module and one API."""

    fake: FakeRunPod
    home: Path
    api: Api


@pytest.fixture(scope="module", params=["rest", "sdk"])
def place(
    request: pytest.FixtureRequest, can_run_pods: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("fake")
    fake = FakeRunPod.start(folder, pull_seconds=0.05)
    yield Place(fake, tmp_path_factory.mktemp("home"), request.param)
    fake.stop()


@pytest.fixture
def renting(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Renting]:
    """Ends with the check that every test shares: no pod exists that is not in the ledger, and none of ours is left."""
    for name, value in place.fake.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("prices.json", "listing.json"):  # the caches of an earlier test must not count
        (place.home / "allocations" / name).unlink(missing_ok=True)
    rented = Renting(place.fake, place.home, place.api)
    before = {pod.id for pod in place.fake.ever()}
    yield rented
    place.fake.clear()
    place.fake.configure(pod_key="terminate")
    made = [pod for pod in place.fake.ever() if pod.id not in before and not pod.foreign]
    left = place.fake.pods()
    for pod in left:
        place.fake.vanish(pod.id)
    assert {pod.name for pod in made} <= set(rented.known), "a pod was created that is not in the ledger"
    assert not [pod.id for pod in left if pod.name in rented.known], "one of our pods is left"
    assert place.fake.defects() == []
