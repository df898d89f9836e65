"""An operator with a RunPod account at the fake, for tests of whole runs on pods."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from engine.plan import Plan, ProviderRequest, Segments, Target
from engine.remote.bundle import site_paths
from engine.store.reader import Reader
from engine.store.views import AllocationView
from tests.fake_runpod.client import FakeRunPod
from tests.functional.runs.support import Operator, short_plan

GPU: Final = "NVIDIA GeForce RTX 4090"
LIMITS: Final = {"poll": 0.3, "listings_apart": 0.3, "search": 4.0, "terminate": 20.0}
MANY_CALLS: Final = 600
SMALL_RUNNER: Final = Path(__file__).with_name("small_runner.py")


class Renter(Operator):
    """Pods are rented at the fake; they use this machine's environment as an image would bring it."""

    runner_word = "runner"

    def __init__(self, home: Path, fake: FakeRunPod) -> None:
        super().__init__(home)
        self.fake = fake

    def configure(self, api: str = "rest", calls: int = MANY_CALLS, max_cost: float = 1.0, **limits: float) -> None:
        """Write the home's settings, with short limits."""
        lines = [
            "[runpod]",
            f'api = "{api}"',
            f"python = {json.dumps(sys.executable)}",
            'environment = "image"',
            f"site = {json.dumps(list(site_paths()))}",
            f"gpus = [{json.dumps(GPU)}]",
            "max_price = 1.0",
            f"max_cost = {max_cost}",
            f"calls_per_minute = {calls}",
            "[runpod.limits]",
            *(f"{name} = {float(value)}" for name, value in {**LIMITS, **limits}.items()),
        ]
        (self.home / "config.toml").write_text("\n".join(lines))

    def plan(self, segments: Segments = "raw", *, steps: int = 20, **request: Any) -> Plan:
        """A short run on a pod; by default raw, which needs no measured environment."""
        changes = request.pop("changes", {})
        return short_plan(
            segments, steps=steps, provider=ProviderRequest(name="runpod", **request), **{"challenge": None, **changes}
        )

    def long_plan(self, seconds: float, segments: Segments = "raw", **request: Any) -> Plan:
        """One that trains for so many seconds."""
        return self.plan(segments, changes={"target": Target(seconds=seconds)}, **request)

    def glasshouse(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command line on this home."""
        command = [sys.executable, "-m", "glasshouse_tui.cli", "--home", str(self.home), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def start_small(self, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> str:
        """Start a run whose trainer needs no torch, where the training is not what is looked at."""

        def spawn(home: Path, run_id: str) -> int:
            command = [sys.executable, str(SMALL_RUNNER), "--home", str(home), "--run", run_id]
            (home / "logs").mkdir(exist_ok=True)
            with (home / "logs" / f"runner-{run_id}.log").open("ab") as log:
                return subprocess.Popen(command, stderr=log, start_new_session=True, cwd=SMALL_RUNNER.parents[3]).pid

        with monkeypatch.context() as patch:
            patch.setattr("engine.runner.spawn.spawn_runner", spawn)
            return self.start(plan)

    def ledger(self) -> list[AllocationView]:
        """Every allocation that the ledger ever knew, newest first."""
        with Reader(self.home) as reader:
            return reader.allocations()

    def until(self, done: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait for something that another process does."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                pytest.fail(f"not in time; the sentinel says: {self._log('sentinel.log')}")
            time.sleep(0.05)

    def check_ledger(self) -> None:
        """No pod is listed that the ledger does not know, or believes to be gone."""
        believed = {one.name for one in self.ledger() if one.released_at is None}
        ours = {pod.name for pod in self.fake.pods() if pod.name.startswith("glasshouse-")}
        assert ours <= believed

    def _log(self, name: str) -> str:
        path = self.home / "logs" / name
        return path.read_text()[-2000:] if path.exists() else ""
