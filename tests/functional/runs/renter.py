"""An operator with a RunPod account at the fake, for tests of whole runs on pods."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from engine.plan import Plan, ProviderRequest, Segments
from engine.store.reader import Reader
from engine.store.views import AllocationView, LogLine
from tests.fake_runpod.client import FakeRunPod
from tests.functional.runs.support import LONG, Operator, short_plan

GPU: Final = "NVIDIA GeForce RTX 4090"
LIMITS: Final = {"poll": 0.3, "listings_apart": 0.3, "search": 4.0, "terminate": 60.0}
MANY_CALLS: Final = 600


class Renter(Operator):
    """Pods are rented at the fake; they use this machine's installed packages in place of an image's."""

    def __init__(self, home: Path, fake: FakeRunPod, sites: Sequence[str]) -> None:
        super().__init__(home)
        self.fake = fake
        self.sites = sites

    def configure(self, api: str = "rest", calls: int = MANY_CALLS, max_cost: float = 1.0, **limits: float) -> None:
        """Write the home's settings, with short limits."""
        lines = [
            "[runpod]",
            f'api = "{api}"',
            f"python = {json.dumps(sys.executable)}",
            'environment = "image"',
            f"site = {json.dumps(list(self.sites))}",
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

    def long_plan(self, segments: Segments = "raw", **request: Any) -> Plan:
        """A plan that trains until `hurry` is called."""
        return self.plan(segments, changes={"target": LONG}, **request)

    def glasshouse(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command line on this home."""
        command = [sys.executable, "-m", "glasshouse_tui.cli", "--home", str(self.home), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    def trainer(self, run_id: str) -> psutil.Process:
        """The trainer of a run on a pod; its command line does not name this home."""
        lines = ((process, " ".join(process.info["cmdline"] or ())) for process in psutil.process_iter(["cmdline"]))
        (supervisor,) = (process for process, line in lines if run_id in line and "supervisor --dir" in line)
        (trainer,) = (child for child in supervisor.children(recursive=True) if "trainer" in child.cmdline())
        return trainer

    def ledger(self) -> list[AllocationView]:
        """Every allocation ever recorded in the ledger, newest first."""
        with Reader(self.home) as reader:
            return reader.allocations()

    def log(self, run_id: str) -> list[LogLine]:
        """Both logs of a run."""
        with Reader(self.home) as reader:
            return reader.log(run_id)

    def receipt(self, run_id: str) -> dict[str, Any]:
        """The receipt over the run's row."""
        with Reader(self.home) as reader:
            return reader.receipts(run_id)["run"]

    def check_ledger(self) -> None:
        """Every listed pod is in the ledger and not recorded as gone."""
        unreleased = {one.name for one in self.ledger() if one.released_at is None}
        ours = {pod.name for pod in self.fake.pods() if pod.name.startswith("glasshouse-")}
        assert ours <= unreleased
