"""A real home, written through the store's own writer, and the clock that the console reads."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.plan import Data, Model, Plan, ProviderRequest, Target
from engine.records.row import live_row
from engine.store.deadline import Deadline
from engine.store.reader import Reader
from engine.store.views import PROTECTED_STAGES, RAW_STAGES, Check
from engine.store.writer import Writer
from engine.wire import (
    ATTEST_CHALLENGE,
    ATTEST_EVIDENCE,
    ATTEST_RESULT,
    LAUNCH_ACCEPTED,
    PACKAGE_SEALED,
    RELEASE_GRANTED,
    SEGMENT_STATE,
    TRAIN_PROGRESS,
    ZEROIZE_DONE,
    ChainWriter,
)

START = datetime(2026, 5, 17, 14, 3, 20, tzinfo=UTC)
STEPS = 1200


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at

    def text(self) -> str:
        return self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def tick(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class Story:
    """Writes runs into a home, one stage at a time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clock = Clock()
        self.writer = Writer(home, clock=self.clock.text)
        self._chains: dict[tuple[str, str], ChainWriter] = {}
        self._taken: dict[tuple[str, str], int] = {}

    def queue(self, run_id: str, *, label: str = "demo", steps: int = STEPS, owned: bool = True, **plan: Any) -> str:
        model = Model(source="tiny", name="glasshouse/tiny-qwen2")
        target, provider = Target(steps=steps), ProviderRequest(name="local")
        queued = Plan(label=label, preset="demo", model=model, data=Data(), target=target, provider=provider, **plan)
        self.writer.create_run(run_id, queued)
        if owned:
            self.writer.claim_runner(run_id)
        return run_id

    def event(self, run_id: str, chain: Any, name: str, body: dict[str, Any]) -> None:
        writer = self._chains.setdefault((run_id, chain), ChainWriter(run_id))
        self.writer.append_events(run_id, chain, [writer.append(name, body, ts=self.clock.text())])

    def move(self, run_id: str, subject: str, state: str, reason: str = "", after: float = 0.4) -> None:
        self.clock.tick(after)
        self.writer.transition(run_id, subject, state, reason)

    def allocate(self, run_id: str) -> None:
        self.move(run_id, "run", "allocating")
        name = f"glasshouse-local-{run_id[:4]}"
        self.writer.allocation_intent(
            f"alloc-{run_id}", "local", name, run_id, gpu_model="CPU", price_per_hour=0.0, spent=0.0
        )
        self.writer.allocation_state(f"alloc-{run_id}", "created")
        self.writer.allocation_state(f"alloc-{run_id}", "ready")
        self.writer.describe(run_id, gpu_model="CPU")
        self.move(run_id, "run", "connecting")
        self.move(run_id, "run", "staging")
        self.event(run_id, "runner", PACKAGE_SEALED, {"files": 4, "bytes": 1_204_331, "manifest": "ab" * 32})
        self.move(run_id, "run", "running", after=1.2)
        self.event(run_id, "pod", LAUNCH_ACCEPTED, {"bundle": "cd" * 32})

    def rent(
        self,
        allocation_id: str,
        run_id: str | None,
        *,
        gpu: str = "NVIDIA L4",
        price: float | None = 0.43,
        spent: float | None = 1.29,
    ) -> str:
        """Enter a pod into the ledger, in the state ready."""
        self.clock.tick(1)
        name = f"glasshouse-5f3c21aa-{(run_id or 'selftest')[:8]}-{allocation_id[:4]}"
        self.writer.allocation_intent(
            allocation_id, "runpod", name, run_id, gpu_model=gpu, provider_id=f"pod{allocation_id[:4]}"
        )
        if price is not None and spent is not None:
            self.writer.allocation_state(allocation_id, "created", price_per_hour=price, spent=spent)
        else:
            self.writer.allocation_state(allocation_id, "created")
        self.writer.allocation_state(allocation_id, "ready")
        return allocation_id

    def rented(self) -> None:
        """Enter one allocation of each kind: in use, kept, leaked."""
        self.half("b81e44d0a6c1")
        for run_id in ("3f9a1c0d77b2", "9c07e5aa1b34"):
            self.queue(run_id)
            self.move(run_id, "run", "failed", "segment_failed: the raw segment failed")
            self.writer.release_runner(run_id)
        self.rent("a1b2c3d4e5f6", "b81e44d0a6c1")
        self.rent("c07d5e6f7a8b", "3f9a1c0d77b2", gpu="NVIDIA RTX A4000", price=0.25, spent=0.61)
        self.keep("c07d5e6f7a8b", 25)
        self.rent("e9f8a7b6c5d4", "9c07e5aa1b34", gpu="NVIDIA H100 80GB HBM3", price=2.99, spent=4.02)
        self.writer.allocation_state("e9f8a7b6c5d4", "leaked", "release_failed: terminate was answered 429 until 14:03")

    def keep(self, allocation_id: str, minutes: int) -> str:
        """Enter into the ledger that an allocation is kept; returns until when."""
        until = (self.clock.at + timedelta(minutes=minutes)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self.writer.allocation_state(allocation_id, "kept", f"kept until {until}", keep_until=Deadline(utc=until))
        return until

    def stage(self, run_id: str, kind: str, state: str, reason: str = "", after: float = 0.6) -> None:
        self.move(run_id, f"segment:{kind}", state, reason, after)
        self.event(run_id, "pod", SEGMENT_STATE, {"segment": kind, "state": state})

    def train(self, run_id: str, kind: str, steps: int, seconds_a_step: float = 0.0128) -> None:
        """Add measured steps. Losses depend only on the step, so that both segments have the same ones."""
        first = self._taken.get((run_id, kind), 0)
        losses = [loss_at(step) for step in range(first, first + steps)]
        nanos = [round(seconds_a_step * 1e9 * (1 + 0.05 * math.sin(step))) for step in range(first, first + steps)]
        self._taken[run_id, kind] = first + steps
        self.clock.tick(steps * seconds_a_step)
        body = {
            "segment": kind,
            "from": first,
            "to": first + steps,
            "losses": base64.b64encode(struct.pack(f"<{steps}f", *losses)).decode(),
            "nanos": base64.b64encode(struct.pack(f"<{steps}Q", *nanos)).decode(),
        }
        self.event(run_id, "pod", TRAIN_PROGRESS, body)

    def raw(self, run_id: str, steps: int = STEPS) -> None:
        for state in RAW_STAGES[1:-1]:
            self.stage(run_id, "raw", state, after=1.1)
        self.train(run_id, "raw", steps)
        self.writer.segment(
            run_id,
            "raw",
            stop_reason="step_budget",
            final_loss=loss_at(steps - 1),
            adapter_sha256="1a" * 32,
            tensor_digest="7c" * 32,
        )
        self.stage(run_id, "raw", "done", "step budget reached")

    def protect(self, run_id: str, steps: int = STEPS // 2) -> None:
        """Play the protected segment into its training."""
        self.stage(run_id, "protected", "launching", "bundle measured")
        self.stage(run_id, "protected", "attesting", "evidence on a fresh nonce", after=2.1)
        self.event(run_id, "runner", ATTEST_CHALLENGE, {"nonce": "9f" * 32})
        self.move(run_id, "attestation", "awaiting_evidence")
        self.event(run_id, "pod", ATTEST_EVIDENCE, {"tokenBytes": 3120})
        self.move(run_id, "attestation", "verified", "evidence met the policy")
        self.writer.describe(run_id, tier="software", ear_status="warning")
        self.event(run_id, "runner", ATTEST_RESULT, {"status": "warning", "policy": "default-1"})
        self.stage(run_id, "protected", "releasing", "receipt signed first")
        self.move(run_id, "key", "released", "to the attested key", after=0.1)
        self.event(run_id, "runner", RELEASE_GRANTED, {"receipt": "5e" * 32})
        for state in ("loading", "warming", "training"):
            self.stage(run_id, "protected", state, after=1.1)
        self.move(run_id, "runtime", "running", after=0.0)
        self.train(run_id, "protected", steps, 0.0129)

    def finish(self, run_id: str, *, failing: Sequence[str] = ()) -> None:
        """Play the run from training to its row."""
        done = self._taken[run_id, "protected"]
        self.train(run_id, "protected", STEPS - done, 0.0129)
        self.writer.segment(
            run_id,
            "protected",
            stop_reason="step_budget",
            final_loss=loss_at(STEPS - 1),
            adapter_sha256="2b" * 32,
            tensor_digest="7c" * 32,
        )
        self.stage(run_id, "protected", "sealing", "adapter sealed to the operator")
        self.stage(run_id, "protected", "zeroizing", "keys and plaintext wiped")
        self.move(run_id, "runtime", "zeroizing", after=0.0)
        self.event(run_id, "pod", ZEROIZE_DONE, {"hitsBefore": 6, "hitsAfter": 0, "bytesScanned": 812_331_008})
        self.move(run_id, "runtime", "zeroized", "6 hits before the wipe, none after")
        self.move(run_id, "key", "destroyed", after=0.0)
        self.stage(run_id, "protected", "done", "step budget reached")
        self.move(run_id, "run", "collecting")
        self.move(run_id, "run", "cleaning")
        self.move(run_id, "cleanup", "terminating")
        self.writer.allocation_state(f"alloc-{run_id}", "releasing")
        self.writer.allocation_state(f"alloc-{run_id}", "gone", spent=0.0)
        self.move(run_id, "cleanup", "gone", "absent in 2 listings")
        with Reader(self.home) as reader:
            row = live_row(reader.run(run_id))
        checks = [
            Check(
                name=name,
                group=group,
                status="failed" if name in failing else "passed",
                reason="the losses differ from measured step 17 of 1,200 on" if name in failing else reason,
            )
            for group, name, reason in CHECKS
        ]
        row |= {"clean": not failing, "verdict": "not resolved"}
        row["checks"] = [{"name": c.name, "group": c.group, "status": c.status, "reason": c.reason} for c in checks]
        self.clock.tick(0.4)
        self.writer.finish(run_id, row, checks)
        self.writer.release_runner(run_id)

    def whole(self, run_id: str, **plan: Any) -> str:
        """Play a run from beginning to end."""
        self.queue(run_id, **plan)
        self.allocate(run_id)
        self.raw(run_id)
        self.protect(run_id)
        self.finish(run_id)
        return run_id

    def half(self, run_id: str, **plan: Any) -> str:
        """Play a run into the middle of its protected segment."""
        self.queue(run_id, **plan)
        self.allocate(run_id)
        self.raw(run_id)
        self.protect(run_id)
        return run_id


CHECKS: tuple[tuple[Any, str, str], ...] = (
    ("lifecycle", "attestation_verified", "evidence met the policy (tier software, EAR warning)"),
    ("lifecycle", "released_after_result", "the result precedes the release in the runner's log"),
    ("lifecycle", "trained_after_release", "the allocation's log links to the release"),
    ("lifecycle", "chains_whole", "31 and 48 events, each linked to the one before"),
    ("lifecycle", "zeroization_proven", "the scan found the secrets before the wipe and none after it"),
    ("lifecycle", "raw_completed", "1,200 steps, artifact collected"),
    ("lifecycle", "same_allocation", "one machine in both segments"),
    ("lifecycle", "allocation_gone", "absent in 2 successful listings"),
    ("model_artifact", "finite", "every loss and every adapter value is finite"),
    ("model_artifact", "planned_stop", "stopped by step_budget"),
    ("model_artifact", "adapters_distinct", "two artifacts"),
    ("model_artifact", "adapters_open", "each adapter opened"),
    ("model_artifact", "same_losses", "the loss bits of 1200 common steps are equal"),
    ("model_artifact", "same_tensors", "equal at 4 checkpoints and at the end"),
    ("model_artifact", "step_chain", "recomputed over 1200 steps"),
    ("model_artifact", "nothing_injected", "nothing was injected"),
)
assert len(PROTECTED_STAGES) == 10


def loss_at(step: int) -> float:
    """A falling loss with a little noise that depends only on the step."""
    return 1.2 + 5.6 * math.exp(-step / 260) + 0.18 * math.sin(step * 1.7) * math.cos(step * 0.37)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def story(home: Path) -> Iterator[Story]:
    played = Story(home)
    yield played
    played.writer.close()


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)
    time.tzset()
