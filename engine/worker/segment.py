"""How both segments drive their trainer: launch, load, warm up, train, write the adapter."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from engine.errors import RunError
from engine.events import (
    BodyT,
    TrainCheckpoint,
    TrainEvaluated,
    TrainFinished,
    TrainMeasured,
    TrainProgress,
    TrainStarted,
)
from engine.plan import SegmentKind
from engine.wire import canonical
from engine.worker.children import Child, spawn_on_pipes
from engine.worker.context import Context
from engine.worker.isolation import memfd
from engine.worker.training import numerics

LOAD_SECONDS: Final = 3600.0
TRAIN_SECONDS: Final = 8 * 24 * 3600.0
WRITE_SECONDS: Final = 600.0


class TrainerProcess:
    """The trainer of one segment, seen from the supervisor."""

    def __init__(self, context: Context, kind: SegmentKind, files: Mapping[str, int], adapter_fd: int) -> None:
        self._context = context
        self._kind = kind
        self._files = dict(files)
        self._adapter_fd = adapter_fd
        self._stop_sent = False
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        """The running process; only after `launch`."""
        if self._child is None:
            raise RuntimeError("the trainer was not launched")
        return self._child

    @property
    def started(self) -> list[Child]:
        """The process, once there is one."""
        return [] if self._child is None else [self._child]

    def launch(self, extra: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Start the process. It imports, and waits before any payload is read."""
        setup = {
            "kind": self._kind,
            "plan": msgspec.to_builtins(self._context.plan),
            "modelType": self._context.job.model_type,
            "noiseSeed": self._context.job.noise_seed,
            "files": self._files,
            "adapterFd": self._adapter_fd,
            **extra,
        }
        setup_fd = memfd.from_bytes("setup", canonical(setup))
        try:
            self._child = spawn_on_pipes(
                self._context.bundle,
                "trainer",
                ["--setup", str(setup_fd)],
                fds=[setup_fd, self._adapter_fd, *self._files.values(), *fds],
                env=numerics.ENVIRONMENT,
                log=self._context.folder / f"{self._kind}.log",
                is_quotable=self._kind == "raw",
            )
        finally:
            os.close(setup_fd)

    def load_and_train(self, watch: Callable[[], None] = lambda: None) -> TrainFinished:
        """Drive the trainer through loading, settling and the measured window; returns how it finished.

        `watch` is called a few times a second, and may raise to abort the segment.
        """
        log, kind = self._context.log, self._kind

        def meanwhile() -> None:
            watch()
            self._forward_stop()

        log.state(kind, "loading")
        self.child.channel.send({"cmd": "load"})
        loaded = self.child.expect("loaded", LOAD_SECONDS, meanwhile=meanwhile)
        log.state(kind, "warming")
        warmed = self.child.expect("warmed", LOAD_SECONDS, meanwhile=meanwhile, others=self._record)
        log.state(kind, "training")
        log.add(self._body(TrainStarted, {"numerics": loaded["numerics"], **warmed}))
        self.child.channel.send({"cmd": "train"})  # after the line, so that the runner sees it before the first step
        message = self.child.expect("finished", TRAIN_SECONDS, meanwhile=meanwhile, others=self._record)
        finished = self._body(TrainFinished, message)
        log.add(finished)
        return finished

    def write_adapter(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Let the trainer write the adapter to its descriptor; returns size and SHA-256 of the artifact."""
        command = {"cmd": "write_adapter", "metadata": canonical(metadata).decode()}
        return self.child.ask(command, "adapter", WRITE_SECONDS)

    def command(self, command: str, answer: str, seconds: float = WRITE_SECONDS) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        return self.child.ask({"cmd": command}, answer, seconds)

    def exit(self) -> int | None:
        """Let the trainer exit; returns its status."""
        self.child.channel.send({"cmd": "exit"})
        return self.child.finish()

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._child is not None:
            self._child.kill()

    def _record(self, message: dict[str, Any]) -> None:
        if message.get("msg") == "progress":
            self._context.log.add(self._body(TrainProgress, message))
        elif message.get("msg") == "evaluated":
            self._context.log.add(self._body(TrainEvaluated, message))
        elif message.get("msg") == "checkpoint":
            self._context.log.add(self._body(TrainCheckpoint, message))
        elif message.get("msg") == "measured":
            self._context.log.add(self._body(TrainMeasured, {**message, "at": self._context.log.now()}))

    def _body(self, kind: type[BodyT], message: dict[str, Any]) -> BodyT:
        """An event's body from the trainer's message; the trainer's messages too must match the published schema."""
        fields = {name: value for name, value in message.items() if name != "msg"}
        try:
            return msgspec.convert({"segment": self._kind, **fields}, kind, strict=True)
        except msgspec.ValidationError as error:
            raise RunError(f"The trainer's {message.get('msg')} message is malformed.", code="event_invalid") from error

    def _forward_stop(self) -> None:
        if self._stop_sent:
            return
        if self._context.inbox.cancelled():
            reason = "cancelled"
        elif self._context.lease_over():
            reason = "lease_expired"
        else:
            return
        self.child.channel.send({"cmd": "stop", "reason": reason})
        self._stop_sent = True
