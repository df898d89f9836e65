"""The protected segment in the supervisor: no plaintext before the evidence is accepted, none after the wipe."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engine.attestation.policy import policy_from
from engine.attestation.reasons import refusal
from engine.attestation.wipe_proof import PAYLOAD, SCANNER, SUPERVISOR, TRAINER, Expected, zeroization_faults
from engine.attestation.zeroization import ABANDONED_METHODS, METHODS, Zeroization, zeroization_receipt
from engine.errors import GlasshouseError, RunError
from engine.events import AdapterSealed, Envelope, TrainFinished, ZeroizeDone, ZeroizeStarted
from engine.plan import SegmentKind
from engine.sealing.adapter import AdapterBinding
from engine.sealing.manifest import Manifest, manifest_digest
from engine.sealing.package import open_sealed, read_manifest
from engine.wire import utc_now
from engine.worker import gpu_memory, hub_weights, identity
from engine.worker.attester import Attestation, EnvironmentMeasuring
from engine.worker.channel import TIMEOUT, Channel, pair
from engine.worker.children import Child, spawn_on_socket
from engine.worker.context import Context
from engine.worker.isolation import memfd, patterns, procfs
from engine.worker.key_process import ENVIRONMENT as KEY_ENVIRONMENT
from engine.worker.segment import TrainerProcess
from engine.worker.zeroization import Prover, stack_faults

KIND: Final[SegmentKind] = "protected"
KEY_SECONDS: Final = 3600.0
POLL_SECONDS: Final = 0.2
WIPE_SECONDS: Final = 10.0  # for a process whose channel was closed to wipe what it holds


def run(context: Context) -> None:
    """Run the protected segment to its end; on any error, everything that the supervisor can wipe is wiped."""
    segment = ProtectedSegment(context)
    try:
        segment.run()
    except GlasshouseError as error:
        segment.abandon(error.code)
        raise
    except BaseException as error:
        segment.abandon(type(error).__name__)
        raise
    finally:
        segment.close()


class ProtectedSegment:
    """One protected segment's processes, memory and proof."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._memfds: dict[str, int] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._hub: dict[str, int] = {}
        self._children: list[Child] = []
        self._released = False
        self._done = False
        self._nonce_digest = self._launched = ""
        self._adapter: AdapterSealed | None = None
        self._prover: Prover | None = None
        self._trainer: TrainerProcess | None = None
        self._device = gpu_memory.memory_used()
        self._adapter_fd = memfd.create("adapter", 0)
        self._patterns_fd = memfd.create("patterns", patterns.STORE_BYTES)

    @property
    def prover(self) -> Prover:
        """The scanner; only after the launch."""
        if self._prover is None:
            raise RuntimeError("the scanner was not launched")
        return self._prover

    @property
    def trainer(self) -> TrainerProcess:
        """The trainer; only after the launch."""
        if self._trainer is None:
            raise RuntimeError("the trainer was not launched")
        return self._trainer

    def run(self) -> None:
        """Launch, attest, receive the keys, train, seal, wipe, prove."""
        log, job = self._context.log, self._context.job
        self._launched = utc_now()
        log.state(KIND, "launching", identity=identity.observe(self._context.folder))
        manifest = read_manifest(self._context.folder / "package")
        if manifest_digest(manifest) != job.manifest_digest:
            raise refusal("manifest_mismatch", "the staged manifest is another one")
        self._hub = hub_weights.fetch(job, self._context.folder)
        measuring = EnvironmentMeasuring(self._context.bundle.sites)
        keys, enforcement = self._launch(manifest)
        attestation = Attestation(
            self._context, measuring.result(), enforcement, str(keys["public"]), self._give_up_if_over
        )
        log.state(KIND, "attesting")
        attestation.answer_challenge()
        log.state(KIND, "releasing")
        release = attestation.await_release()
        self._nonce_digest = attestation.nonce_digest
        self._open(manifest, attestation, release)
        finished = self.trainer.load_and_train(self._require_helpers)
        log.state(KIND, "sealing")
        self._seal_adapter(finished, attestation)
        log.state(KIND, "zeroizing")
        self._zeroize()
        log.state(KIND, "done")

    def _launch(self, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
        for entry in manifest.files:
            fd = memfd.create(entry.name, entry.size)
            self._memfds[entry.name] = fd
            self._maps[entry.name] = memfd.map_writable(fd, entry.size)
        self._trainer = TrainerProcess(self._context, KIND, {**self._memfds, **self._hub}, self._adapter_fd)
        ours, theirs = pair()
        with theirs, Channel(ours.detach()) as handover:
            self.trainer.launch(
                {
                    "handover": theirs.fileno(),
                    "scratch": str(self._context.scratch),
                    "patternsFd": self._patterns_fd,
                    "secretWeights": any(name.startswith("weights") for name in self._memfds),
                },
                [theirs.fileno(), self._patterns_fd],
            )
            theirs.close()
            self._prover = Prover(self._context, self._device)
            self.prover.watch_memfds(PAYLOAD, [*self._memfds.values(), self._adapter_fd])
            # Both start now, so that all code of this segment is loaded before the environment counts as measured.
            self._opener = self._spawn_keyproc("open")
            self._sealer = self._spawn_keyproc("seal")
            ready = self._opener.expect("ready", KEY_SECONDS)
            sealer = self._sealer.expect("ready", KEY_SECONDS)
            self.prover.watch(TRAINER, self._trainer_memory(handover))
        hardened = self.trainer.child.expect(
            "hardened", self._context.job.limits.launch, meanwhile=self._context.give_up_if_cancelled
        )
        self.trainer.child.expect("ready", self._context.job.limits.launch)
        return ready, {
            "trainer": hardened["enforcement"],
            "keyproc": ready["enforcement"],
            "sealer": sealer["enforcement"],
            "scanner": self.prover.enforcement,
            "supervisor": self._context.enforcement,
        }

    def _spawn_keyproc(self, task: str) -> Child:
        child = spawn_on_socket(
            self._context.bundle,
            f"keyproc {task}",
            ["--wait", str(self._context.job.limits.lease)],
            fds=[],
            env=KEY_ENVIRONMENT,
            log=self._context.folder / f"{KIND}.log",
        )
        self._children.append(child)
        _, fds = child.expect_with("memory", KEY_SECONDS)
        self.prover.watch(f"keyproc {task}", fds)
        return child

    def _give_up_if_over(self) -> None:
        """Raise if the run is over or a process of the segment has died: it must get no keys then."""
        self._context.give_up_if_cancelled()
        for child in (self.trainer.child, self._opener):
            child.require_alive()
        self._require_helpers()

    def _require_helpers(self) -> None:
        """Raise if the sealer or the scanner has died: without them nothing could be sealed or proven."""
        for child in (self._sealer, self.prover.child):
            child.require_alive()

    def _trainer_memory(self, handover: Channel) -> list[int]:
        """The descriptors of the trainer's memory, which it sends just before it is hardened."""
        until = time.monotonic() + self._context.job.limits.launch
        while True:
            self._context.give_up_if_cancelled()
            try:
                return handover.recv(POLL_SECONDS)[1]
            except RunError as error:
                if error.code != TIMEOUT:
                    # The trainer exited; its own channel has the reason, which `expect` raises.
                    self.trainer.child.expect("hardened", POLL_SECONDS)
                    raise
                if time.monotonic() > until:
                    raise

    def _open(self, manifest: Manifest, attestation: Attestation, release: dict[str, str]) -> None:
        """Let the key process open the package into the memfds, and prove that it kept no key."""
        folder = self._context.folder / "package"
        with contextlib.ExitStack() as stack:
            manifest_fd = os.open(folder / "manifest.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, manifest_fd)
            fds = [manifest_fd]
            for entry in manifest.files:
                fds += [stack.enter_context(open_sealed(folder, entry)).fileno(), self._memfds[entry.name]]
            self._released = True
            opened = self._through_keys(self._opener, {"cmd": "package", **release}, fds, "opened")
        attestation.completed(opened)

    def _through_keys(self, child: Child, command: dict[str, Any], fds: list[int], done: str) -> dict[str, Any]:
        """Run one task of a key process, scanning for its keys while they are live and after they were wiped."""
        store = memfd.create("key patterns", patterns.STORE_BYTES)
        try:
            child.ask(command, "keys_live", KEY_SECONDS, [fds[0], store, *fds[1:]])
            self.prover.take_patterns(store)
        finally:
            memfd.wipe(store)  # the scanner has zeroed it already, unless one of the two died
            os.close(store)
        self.prover.scan("before", [child.role])
        answer = child.ask({"cmd": "proceed"}, done, KEY_SECONDS)
        self.prover.scan("after", [child.role])
        child.channel.send({"cmd": "exit"})
        if child.finish() != 0:
            self.prover.failures.append("keyproc_status")
        self.prover.ended(child)
        self.prover.drop(child.role)
        return answer

    def _seal_adapter(self, finished: TrainFinished, attestation: Attestation) -> None:
        job = self._context.job
        binding = AdapterBinding(job.run_id, KIND, job.manifest_digest or "", attestation.nonce_digest)
        bound = {
            "runId": job.run_id,
            "segment": KIND,
            "manifestSha256": binding.manifest_sha256,
            "nonceSha256": binding.nonce_sha256,
        }
        written = self.trainer.write_adapter(bound)
        folder = self._context.outbox / KIND
        folder.mkdir(mode=0o700)
        out = os.open(folder / "adapter.sealed", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            command = {
                "cmd": "adapter",
                "recipient": job.recipient_public_key,
                "binding": msgspec.to_builtins(binding),
                "size": written["size"],
            }
            sealed = self._through_keys(self._sealer, command, [self._adapter_fd, out], "sealed")
        finally:
            os.close(out)
        body = AdapterSealed(
            segment=KIND,
            size=written["size"],
            sha256=written["sha256"],
            sealed_sha256=sealed["sha256"],
            sealed_size=sealed["size"],
            tensor_digest=finished.tensor_digest,
            nonce_sha256=binding.nonce_sha256,
            runner_head=attestation.runner_head,
        )
        self._context.log.add(body)
        self._adapter = body

    def _zeroize(self) -> None:
        log = self._context.log
        log.add(ZeroizeStarted(segment=KIND))
        self.trainer.command("patterns", "patterns")
        self.prover.take_patterns(self._patterns_fd)
        self.prover.scan("before", [TRAINER, SUPERVISOR, PAYLOAD, SCANNER])
        self.trainer.command("wipe", "wiped")
        self._wipe_memory()
        self.prover.scan("after", [TRAINER, SUPERVISOR, PAYLOAD, SCANNER])
        if self.trainer.exit() != 0:
            self.prover.failures.append("trainer_status")
        self.prover.ended(self.trainer.child)
        self._conclude(self.prover)

    def _conclude(self, prover: Prover, *failures: str, methods: Sequence[str] = METHODS) -> None:
        """Sign the scan results and log them, with the reasons for which they prove no wipe, if any."""
        context = self._context
        adapter = None if self._adapter is None else self._adapter.sha256
        proof = prover.finish(nonce_digest=self._nonce_digest, adapter_digest=adapter, methods=methods)
        faults = zeroization_faults(proof, self._expected(proof))
        reasons = [*faults, *stack_faults(proof), *prover.failures, *failures]
        self._done = True
        procfs.clear(context.scratch)
        context.log.add(
            ZeroizeDone(
                segment=KIND,
                state="unverified" if reasons else "zeroized",
                reasons=reasons,
                receipt=msgspec.convert(zeroization_receipt(proof, context.attester), Envelope),
            )
        )

    def _expected(self, proof: Zeroization) -> Expected:
        """What the runner will hold the receipt against, as far as it is known here."""
        context, adapter = self._context, self._adapter
        return Expected(
            policy=policy_from(context.job.policy),
            adapter_sha256=None if adapter is None else adapter.sha256,
            adapter_size=0 if adapter is None else adapter.size,
            secret_weights=any(name.startswith("weights") for name in self._memfds),
            gpu=context.identity.gpu_uuid is not None,
            launched=self._launched,
            logged=proof.ended,
            pod_head=proof.pod_head,
        )

    def _wipe_memory(self) -> None:
        """Overwrite the payload through the writable maps that only the supervisor has, then adapter and patterns."""
        for mapping in self._maps.values():
            memfd.wipe_map(mapping)
        for fd in (self._adapter_fd, self._patterns_fd):
            memfd.wipe(fd)

    def abandon(self, code: str) -> None:
        """After a failure: end the processes, wipe what can be wiped, and log that nothing is proven."""
        holds_secrets = self._released and not self._done
        children = [*self._children, *([] if self._trainer is None else self._trainer.started)]
        for child in children:
            # A process that loses its supervisor's channel wipes what it holds and exits.
            child.channel.close()
        until = time.monotonic() + (WIPE_SECONDS if holds_secrets else 0.0)
        for child in children:
            child.end_by(until)
        self._wipe_memory()
        if not holds_secrets or self._prover is None:
            return
        for child in children:
            self._prover.ended(child)
        with contextlib.suppress(RunError):  # the scanner itself may have died
            self._prover.scan("after", [SUPERVISOR, PAYLOAD, SCANNER])
        self._conclude(self._prover, f"abandoned_{code}", methods=ABANDONED_METHODS)

    def close(self) -> None:
        """End what still runs and free every descriptor and map."""
        if self._trainer is not None:
            self._trainer.stop()
        if self._prover is not None:
            self._prover.child.kill()
        for mapping in self._maps.values():
            mapping.close()
        hub_weights.close(self._hub)
        for fd in (*self._memfds.values(), self._adapter_fd, self._patterns_fd):
            os.close(fd)
