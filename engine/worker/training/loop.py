"""The training loop: settling steps, then the measured window, until the plan's target."""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

import msgspec

from engine.measure.stepchain import StepChain
from engine.plan import Plan, StopReason
from engine.worker.payload_names import IGNORED
from engine.worker.training import adapter
from engine.worker.training.model import Workload
from engine.worker.training.recorder import CudaRecorder, HostRecorder, Recorder

REPORT_EVERY_NS: Final = 500_000_000


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a measured window. `step_chain` is None in a raw segment; `last_row` indexes the samples."""

    steps: int
    elapsed_ns: int
    stop_reason: StopReason
    final_loss: float | None
    step_chain: str | None
    last_row: int


class Reporter(Protocol):
    """Receives the loop's progress; called between steps, inside the measured window."""

    def progress(self, first: int, losses: list[float], nanos: list[int]) -> None:
        """Steps `first ..` of the measured window are done."""

    def checkpoint(self, step: int, tensor_digest: str, step_chain: str | None) -> None:
        """The adapter's digest after `step` measured steps."""

    def should_stop(self) -> StopReason | None:
        """A reason to stop before the target, or None."""


class Trainer:
    """The optimiser, its learning rate and the order of samples over one workload."""

    def __init__(self, workload: Workload, plan: Plan) -> None:
        import torch

        self.workload = workload
        self.plan = plan
        self.parameters = list(workload.trainable.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=plan.training.learning_rate, weight_decay=plan.training.weight_decay, fused=True
        )
        self.schedule = scheduled(self.optimizer, plan)
        self.order = workload.tokens["order"]
        self.taken = 0
        self.last_row = 0
        self.last_ids: Any = None
        """The ids of the last batch in host memory. Freed, they might be overwritten before the scan that must find
        them, so they are kept until the wipe.
        """

    def step(self) -> Any:
        """One update: forward, backward, clip, update. Returns the loss tensor."""
        import torch

        loss = self._backward() if self.plan.training.grad_accum == 1 else self._accumulate()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.training.grad_clip)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=False)
        return loss

    def _backward(self) -> Any:
        """The loss of one batch."""
        ids, labels = self._batch()
        loss = self.workload.model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach()

    def _accumulate(self) -> Any:
        """The loss of several batches, each weighted by what is learned in it: the mean over all their tokens."""
        batches = [self._batch() for _ in range(self.plan.training.grad_accum)]
        learned = [(labels[:, 1:] != IGNORED).sum() for _, labels in batches]
        whole, total = sum(learned), 0.0
        for (ids, labels), part in zip(batches, learned, strict=True):
            loss = self.workload.model(input_ids=ids, labels=labels, use_cache=False).loss * (part / whole)
            loss.backward()
            total = total + loss.detach()
        return total

    def _batch(self) -> tuple[Any, Any]:
        """The next batch's ids and labels, on the device."""
        import torch

        rows = self._rows()
        ids, labels = (self.workload.tokens[name][rows].to(torch.int64) for name in ("input_ids", "labels"))
        self.last_ids = ids
        return ids.to(self.workload.device), labels.to(self.workload.device)

    def _rows(self) -> Any:
        import torch

        count = len(self.order)
        first = self.taken
        self.taken += self.plan.training.batch
        rows = [int(self.order[index % count]) for index in range(first, self.taken)]
        self.last_row = rows[-1]
        return torch.tensor(rows)


def scheduled(optimizer: Any, plan: Plan) -> Any:
    """The learning rate over all updates (transformers' schedules); None where it never changes.

    The first update of a warm-up has a rate of zero, as there.
    """
    training, steps = plan.training, plan.target.steps
    if training.schedule == "constant" and not training.lr_warmup:
        return None
    from transformers.optimization import get_scheduler

    return get_scheduler(
        "constant_with_warmup" if training.schedule == "constant" else training.schedule,
        optimizer,
        num_warmup_steps=training.lr_warmup,
        num_training_steps=None if steps is None else steps + training.settling_steps,
    )


def settle(trainer: Trainer, reporter: Reporter) -> int:
    """Run the plan's settling steps, which are not measured; ends early on a request to stop. Returns how many ran."""
    planned = trainer.plan.training.settling_steps
    for done in range(1, planned + 1):
        float(trainer.step().item())
        if reporter.should_stop() is not None:
            return done
    return planned


def measure(trainer: Trainer, reporter: Reporter, *, with_evidence: bool) -> Outcome:
    """Train through the measured window; `with_evidence` keeps the step chain in it, as a protected segment does."""
    plan = trainer.plan
    chain = StepChain() if with_evidence else None
    recorder: Recorder = CudaRecorder(chain) if trainer.workload.device == "cuda" else HostRecorder(chain)
    target_ns = None if plan.target.seconds is None else round(plan.target.seconds * 1e9)
    slowdown = plan.inject_overhead_pct / 100 if with_evidence else 0.0
    flush = _Flusher(recorder, reporter)
    issued = 0
    stop: StopReason | None = None
    flush.asked_to_stop = reporter.should_stop()
    recorder.start()
    while stop is None:
        began = time.perf_counter_ns()
        loss = trainer.step()
        if slowdown:
            _spin(round((time.perf_counter_ns() - began) * slowdown))
        recorder.step(loss)
        issued += 1
        at_checkpoint = issued % plan.training.checkpoint_every == 0
        if at_checkpoint:
            flush.now(all_steps=True)
        flush.when_due()
        if recorder.nonfinite_at is not None and plan.training.fail_on_nonfinite:
            stop = "nonfinite_loss"
        elif plan.target.steps is not None and issued >= plan.target.steps:
            stop = "step_budget"
        elif target_ns is not None and recorder.elapsed_ns >= target_ns:
            stop = "target_seconds"
        else:
            stop = flush.asked_to_stop
        if at_checkpoint and stop is None:  # the last step's is reported with the end, after the window is closed
            reporter.checkpoint(
                issued, adapter.digest(trainer.workload.trainable), chain.head() if chain is not None else None
            )
    flush.now(all_steps=True)
    return Outcome(
        steps=flush.sent,
        elapsed_ns=recorder.elapsed_ns,
        stop_reason=stop,
        final_loss=flush.last_loss,
        step_chain=chain.head() if chain is not None else None,
        last_row=trainer.last_row,
    )


class _Flusher:
    """Reports completed steps at intervals and checks for requests to stop."""

    def __init__(self, recorder: Recorder, reporter: Reporter) -> None:
        self._recorder = recorder
        self._reporter = reporter
        self._due = time.perf_counter_ns() + REPORT_EVERY_NS
        self.sent = 0
        self.last_loss: float | None = None
        self.asked_to_stop: StopReason | None = None

    def when_due(self) -> None:
        """Flush and check for a stop once the interval has passed, however often checkpoints flush in between."""
        if time.perf_counter_ns() >= self._due:
            self.now(all_steps=False)
            self.asked_to_stop = self._reporter.should_stop()
            self._due = time.perf_counter_ns() + REPORT_EVERY_NS

    def now(self, *, all_steps: bool) -> None:
        """Report the completed steps; with `all_steps`, wait until all are complete."""
        losses, nanos = self._recorder.drain(all_steps=all_steps)
        if losses:
            self._reporter.progress(self.sent, losses, nanos)
            self.sent += len(losses)
            self.last_loss = losses[-1]


def _spin(nanos: int) -> None:
    until = time.perf_counter_ns() + nanos
    while time.perf_counter_ns() < until:
        pass
