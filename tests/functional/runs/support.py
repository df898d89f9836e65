"""An operator's actions on a home, for tests of real runs."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
import pytest

from engine.payload.local_files import NO_FILES, LocalFiles
from engine.plan import Plan, Segments, Target, preset
from engine.records.export import export_run
from engine.records.formats import render
from engine.records.trust import anchors
from engine.records.verify import Verification, verify_bytes
from engine.runner.start import resume_run, start_run
from engine.store.reader import Reader
from engine.store.views import FINAL_RUN_STATES, RunView
from engine.store.writer import Writer

RUN_SECONDS = 300.0
LONG: Final = Target(steps=20_000)
"""For the small training: more than a hundred seconds, unless `hurry` is called."""
DYING = Path(__file__).with_name("dying.py")


def short_plan(segments: Segments = "pair", *, steps: int = 60, **changes: Any) -> Plan:
    """The demo's plan with few steps; with other data, nothing is held out."""
    plan = preset("demo")
    if "data" in changes:
        plan = msgspec.structs.replace(plan, evaluation=None)
    training = msgspec.structs.replace(plan.training, settling_steps=5, checkpoint_every=25)
    changes = {"target": Target(steps=steps), "training": training, "segments": segments, **changes}
    return msgspec.structs.replace(plan, **changes)


class Operator:
    """A home, and what an operator does with it."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def start(self, plan: Plan, files: LocalFiles = NO_FILES) -> str:
        """Start a run in its own runner process."""
        return start_run(self.home, plan, files)

    def resume(self, run_id: str) -> None:
        """Give an orphaned run a new runner."""
        resume_run(self.home, run_id)

    def kill_runner(self, run_id: str) -> None:
        """Kill the runner as a crash would."""
        runner = self.runner(run_id)
        runner.send_signal(signal.SIGKILL)
        runner.wait(60)

    def die_at(self, point: str, monkeypatch: pytest.MonkeyPatch, go: Callable[[], Any]) -> Any:
        """Have the runner that `go` starts kill itself at a point; see `dying.py`."""
        return self._stop_at("SIGKILL", point, monkeypatch, go)

    def hold_at(self, point: str, monkeypatch: pytest.MonkeyPatch, go: Callable[[], Any]) -> Any:
        """As `die_at`, but suspend the runner there until `held` resumes it."""
        return self._stop_at("SIGSTOP", point, monkeypatch, go)

    @contextlib.contextmanager
    def held(self, run_id: str) -> Iterator[None]:
        """Wait until the runner is suspended; it is resumed at the end of the block."""

        def is_suspended() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):  # a child that has its command line until it starts its own
                return [p.status() for p in self.processes(run_id, DYING.name)] == [psutil.STATUS_STOPPED]
            return False

        self.until(is_suspended)
        (runner,) = self.processes(run_id, DYING.name)
        yield
        runner.resume()

    @staticmethod
    def _stop_at(name: str, point: str, monkeypatch: pytest.MonkeyPatch, go: Callable[[], Any]) -> Any:
        def spawn(home: Path, run_id: str) -> int:
            command = [sys.executable, str(DYING), name, point, "--home", str(home), "--run", run_id]
            logs = home / "logs"
            logs.mkdir(exist_ok=True)
            with (logs / f"runner-{run_id}.log").open("ab") as log:
                return subprocess.Popen(command, stderr=log, start_new_session=True, cwd=DYING.parents[3]).pid

        with monkeypatch.context() as patch:
            patch.setattr("engine.runner.start.spawn_runner", spawn)
            return go()

    def cancel(self, run_id: str) -> None:
        """Ask the runner to stop."""
        with Writer(self.home) as writer:
            writer.request(run_id, "cancel")

    def view(self, run_id: str) -> RunView:
        """The run as it is now."""
        with Reader(self.home) as reader:
            return reader.run(run_id)

    def wait(self, run_id: str, done: Callable[[RunView], bool], seconds: float = RUN_SECONDS) -> RunView:
        """Wait until `done` holds for the run, or its state is final."""
        until = time.monotonic() + seconds
        with Reader(self.home) as reader:
            while True:
                view = reader.run(run_id)
                if done(view) or view.summary.state in FINAL_RUN_STATES:
                    return view
                if time.monotonic() > until:
                    pytest.fail(f"run {run_id} is still {view.summary.state}: {self.log_of(run_id)}")
                time.sleep(0.05)

    def until(self, done: Callable[[], object], seconds: float = RUN_SECONDS) -> None:
        """Wait for something that another process does."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                pytest.fail("\n".join(f"{path}: {path.read_text()[-2000:]}" for path in (self.home / "logs").iterdir()))
            time.sleep(0.05)

    def finish(self, run_id: str) -> RunView:
        """Wait until the run has a row and its runner has exited."""
        view = self.wait(run_id, lambda view: view.row is not None)
        self.until(lambda: not self.processes(run_id, "--run"))
        return view

    def trainer(self, run_id: str) -> psutil.Process:
        """The trainer of a run on the local allocation."""
        (supervisor,) = self.processes(run_id, "supervisor --dir")
        (trainer,) = (child for child in supervisor.children(recursive=True) if "trainer" in child.cmdline())
        return trainer

    def hurry(self, run_id: str) -> None:
        """Have the small training take its remaining steps at once."""
        self.trainer(run_id).send_signal(signal.SIGUSR1)

    def log_of(self, run_id: str) -> str:
        """The runner's own log file."""
        path = self.home / "logs" / f"runner-{run_id}.log"
        return path.read_text() if path.exists() else ""

    def remote_folder(self, run_id: str) -> Path:
        """The run's folder on the local allocation."""
        folders = list((self.home / "local").glob(f"glasshouse-*-{run_id}-*/**/{run_id}"))
        assert len(folders) == 1, folders
        return folders[0]

    def processes(self, run_id: str, word: str = "") -> list[psutil.Process]:
        """Processes of this home that name the run (or its allocation) and `word` on their command line."""
        processes = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            if run_id in line and str(self.home) in line and word in line:
                processes.append(process)
        return processes

    def verified(self, run_id: str) -> Verification:
        """The verification of the run's exported artifact with the home's own trust anchors."""
        with Reader(self.home) as reader:
            text = render(export_run(reader, run_id), "json")
        return verify_bytes(text, anchors(self.home))

    def check_artifacts(self) -> None:
        """Every run that ended in this home, however it ended, exports as a genuine artifact with the same `clean`."""
        with Reader(self.home) as reader:
            ended = [run for run in reader.runs(states=FINAL_RUN_STATES) if "run" in reader.receipts(run.id)]
        for run in ended:
            verification = self.verified(run.id)
            failed = {
                proof.name: f"{proof.code}: {proof.reason}" for proof in verification.proofs if proof.status == "failed"
            }
            failed = {name: reason for name, reason in failed.items() if not reason.startswith("measurement_unknown")}
            assert not failed, (run.state, run.reason, failed)
            assert verification.clean in {run.clean, None}

    def runner(self, run_id: str) -> psutil.Process:
        """The runner's process."""
        (process,) = self.processes(run_id, "--run")
        return process


def segment_state(view: RunView, kind: str) -> str:
    """The state of one segment."""
    return next(segment.state for segment in view.segments if segment.kind == kind)


def checks_of(view: RunView) -> dict[str, str]:
    """The status of each check."""
    return {check.name: check.status for check in view.checks}
