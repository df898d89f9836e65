"""One protected segment without a runner's process: the shipped launcher, supervisor and verifier, step by step.

The test plays the runner, so that it can hold a segment at any point and inspect its processes.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.attestation.challenge import Challenge, sign_challenge
from engine.attestation.evidence import parse_evidence
from engine.attestation.measurement import Measurements, listed_environment
from engine.attestation.nonce import NonceLedger
from engine.attestation.policy import Policy, default_policy, policy_digest
from engine.attestation.release import prepare_release
from engine.attestation.verifier import AttestationResult, Expectations, appraise
from engine.attestation.wipe_proof import zeroization_faults
from engine.attestation.zeroization import Zeroization, read_zeroization
from engine.plan import Plan, dump_plan, plan_digest
from engine.records.wipe import expected_wipe
from engine.remote.launch import launch_command
from engine.sealing.package import seal_package
from engine.sealing.release import release_info
from engine.wire import (
    ATTEST_EVIDENCE,
    LAUNCH_ACCEPTED,
    RUN_CLOSED,
    SEGMENT_STATE,
    ZEROIZE_DONE,
    ChainReader,
    Event,
    canonical,
    sha256_hex,
)
from engine.worker.attester import LOCK_NAME
from engine.worker.isolation.procfs import gone
from engine.worker.job import JOB_FILE, Job, Limits
from tests.functional.runs import small

T = TypeVar("T")

SECONDS: Final = 180.0
RUN: Final = "feedfeedfeed"
TRAINING: Final = "engine/worker/training"
SMALL_MODULES: Final = ("evaluation", "model", "loop", "adapter", "numerics", "rehearsal", "secret_patterns")
DROP_ALL: Final = 24  # PR_CAPBSET_DROP
Patches = Mapping[str, Callable[[str], str]]


def small_modules() -> dict[str, str]:
    """The modules of a worker whose trainer needs no torch."""
    modules = {f"{TRAINING}/{name}.py": "from engine.worker.training.small import *\n" for name in SMALL_MODULES}
    return {**modules, f"{TRAINING}/small.py": Path(small.__file__).read_text()}


def with_small_training(bundle: bytes, patches: Patches | None = None) -> bytes:
    """A bundle whose trainer needs no torch, with other entries patched as text."""
    return patched(bundle, patches or {}, small_modules())


def patched(bundle: bytes, patches: Patches, replaced: Mapping[str, str] | None = None) -> bytes:
    """The same archive with some entries patched or replaced."""
    archive = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(bundle)) as old, zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as new:
        content = {name: old.read(name) for name in old.namelist()}
        content |= {name: text.encode() for name, text in (replaced or {}).items()}
        for name, patch in patches.items():
            before = content[name].decode()
            content[name] = patch(before).encode()
            assert content[name].decode() != before, f"the patch of {name} does nothing"
        for name in sorted(content):
            new.writestr(zipfile.ZipInfo(name), content[name])
    return archive.getvalue()


def without_capabilities() -> None:
    """Make root a user like any other, for this process and what it starts."""
    import ctypes

    libc = ctypes.CDLL(None)
    for capability in range(64):
        libc.prctl(DROP_ALL, capability, 0, 0, 0)


def reference_of(sites: Sequence[Path]) -> str:
    """The environment's digest as the operator's side computes it."""
    return listed_environment(tuple(map(str, sites))).measure().digest


class Pod:
    """A run folder, what is staged in it, and the runner's side of one protected segment."""

    def __init__(
        self, folder: Path, bundle: bytes, sites: Sequence[Path], plan: Plan, *,
        files: Mapping[str, bytes] | None = None, model_type: str = "small", policy: Policy | None = None,
        limits: Limits | None = None, reference: str | None = None,
    ) -> None:  # fmt: skip
        self.folder = folder
        self.bundle = bundle
        self.sites = [str(site) for site in sites]
        self.plan = plan
        self.policy = policy or default_policy()
        self.run_key = Ed25519PrivateKey.generate()
        self.recipient = X25519PrivateKey.generate()
        self.reference = reference or reference_of(sites)
        for name in ("inbox", "outbox", "scratch", "raw"):
            (folder / name).mkdir(parents=True)
        payload = files or {name: os.urandom(8192) for name in small.FILES}
        self.package = seal_package(
            payload, folder / "package", run_id=RUN,
            plan_digest=plan_digest(plan), policy_digest=policy_digest(self.policy),
        )  # fmt: skip
        job = Job(
            run_id=RUN, allocation_id="pod", plan=dump_plan(plan), plan_digest=plan_digest(plan),
            policy=msgspec.to_builtins(self.policy), policy_digest=policy_digest(self.policy),
            manifest_digest=self.package.digest, payload_files={}, hub_weights={}, hub_revision=None,
            model_type=model_type, noise_seed=1,
            run_public_key=base64.b64encode(self.run_key.public_key().public_bytes_raw()).decode(),
            recipient_public_key=base64.b64encode(self.recipient.public_key().public_bytes_raw()).decode(),
            ssh_host_key_digest="0" * 64, limits=limits or Limits(launch=SECONDS, end=20.0),
        )  # fmt: skip
        (folder / JOB_FILE).write_bytes(canonical(msgspec.to_builtins(job)))
        self.expected_bundle = sha256_hex(bundle)
        self.bundle_path = folder / "bundle.pyz"
        self.bundle_path.write_bytes(bundle)
        self.nonces = NonceLedger(folder.parent / f"{folder.name}-nonces.json")
        self.events: list[Event] = []
        self.pid = self.start = 0
        self._reader = ChainReader(RUN)
        self._read = 0
        self._challenge: Challenge | None = None

    # -- launch and follow

    def launch(self, confine: Callable[[], None] | None = None) -> dict[str, Any]:
        """Start the supervisor as over SSH; returns the launcher's answer. `confine` runs in the child before exec."""
        command = launch_command(
            sys.executable, str(self.bundle_path), sha256_hex(self.bundle), str(self.folder), self.sites
        )
        launched = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS, preexec_fn=confine)
        answer: dict[str, Any] = json.loads(launched.stdout)
        self.pid, self.start = int(answer.get("pid", 0)), int(answer.get("start", 0))
        return answer

    def follow(self) -> list[Event]:
        """Every event so far; checks the hash chain."""
        path = self.folder / "events.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    self.events.append(self._reader.feed(line))
        return self.events

    def wait(self, name: str, seconds: float = SECONDS) -> Event:
        """Wait for the first event with this name."""
        return self.until(lambda: self.named(name), name, seconds)

    def wait_state(self, *states: str) -> dict[str, Any]:
        """Wait for the first change of the segment to one of these states."""
        return self.until(lambda: next((one for one in self.states() if one["state"] in states), None), str(states))

    def until(self, poll: Callable[[], T | None], what: str, seconds: float = SECONDS) -> T:
        """Poll until the result is not None; fails when the supervisor ends first."""
        deadline = time.monotonic() + seconds
        while True:
            alive = self.alive()
            self.follow()
            if (result := poll()) is not None:
                return result
            assert alive, f"the supervisor ended without {what}: {self.log_text()}"
            assert time.monotonic() < deadline, f"no {what}: {self.log_text()}"
            time.sleep(0.01)

    def named(self, name: str) -> Event | None:
        """The first event with this name so far, or None."""
        return next((event for event in self.events if event.event == name), None)

    def states(self) -> list[dict[str, Any]]:
        """Each change of the segment's state so far."""
        return [event.body for event in self.events if event.event == SEGMENT_STATE]

    def log_text(self) -> str:
        """The logs' text, for the message of a failing test."""
        texts = [path.read_text() for path in (self.folder / "supervisor.log", self.folder / "protected.log")
                 if path.exists()]  # fmt: skip
        return "\n".join([*texts, *(str(state) for state in self.states()[-2:])])

    # -- the runner's answers

    def put(self, name: str, message: object) -> None:
        """Put a message into the inbox atomically."""
        part = self.folder / "inbox" / f"{name}.part"
        part.write_bytes(canonical(message))
        part.rename(part.with_suffix(""))

    def attest(self) -> AttestationResult:
        """Challenge, wait for the evidence, appraise it."""
        self.wait_state("attesting", "failed")
        assert self.states()[-1]["state"] == "attesting", self.log_text()
        self._challenge = Challenge(
            run_id=RUN, nonce=base64.b64encode(self.nonces.issue(RUN)).decode(), plan_digest=plan_digest(self.plan),
            manifest_digest=self.package.digest, policy_digest=policy_digest(self.policy), challenge=None,
            runner_head="1" * 64, bundle=sha256_hex(self.bundle),
            recipient_public=base64.b64encode(self.recipient.public_key().public_bytes_raw()).decode(),
        )  # fmt: skip
        self.put("challenge.json", sign_challenge(self._challenge, self.run_key))
        self.token = str(self.wait(ATTEST_EVIDENCE).body["token"])
        with zipfile.ZipFile(io.BytesIO(self.bundle)) as archive:
            lock = sha256_hex(archive.read(LOCK_NAME))
        expected = Expectations(
            run_id=RUN, attester_public=self.attester,
            measurements=Measurements(bundle=self.expected_bundle, lock=lock, environment=self.reference),
            plan_digest=plan_digest(self.plan), manifest_digest=self.package.digest, challenge=None, pod_id="pod",
            ssh_host_key="0" * 64, runner_head="1" * 64,
        )  # fmt: skip
        return appraise(self.token, expected=expected, policy=self.policy, nonces=self.nonces, now=time.time())

    @property
    def attester(self) -> bytes:
        """The key that the launch announced."""
        return base64.b64decode(self.wait(LAUNCH_ACCEPTED).body["attesterKey"])

    def enforcement(self) -> dict[str, str]:
        """The value that the evidence states for each control."""
        return {name: control.value for name, control in parse_evidence(self.token, self.attester).enforcement.items()}

    def answer(self, result: AttestationResult) -> None:
        """Release the keys, or deny them, as the result says."""
        if not result.accepted:
            self.put("denied.json", {"codes": list(result.reason_codes)})
            return
        release = prepare_release(
            result, self.package.keys, run_id=RUN, run_key=self.run_key, runner_head="2" * 64, pod_head="3" * 64
        )
        info = release_info(
            evidence_sha256=result.evidence_sha256, policy_sha256=result.policy_sha256,
            manifest_sha256=self.package.digest, run_id=RUN,
        )  # fmt: skip
        message = {
            "ciphertext": base64.b64encode(release.ciphertext).decode(), "info": base64.b64encode(info).decode(),
            "receipt": release.receipt, "runnerHead": "4" * 64,
        }  # fmt: skip
        self.put("release.json", message)

    def finish(self) -> dict[str, Any]:
        """Wait for the segment's end, close the log, and return its last state."""
        last = self.wait_state("done", "failed")
        self.put("end.json", {"runnerHead": "5" * 64})
        self.wait(RUN_CLOSED)
        self.until(lambda: None if self.processes() else True, "end of every process")
        return last

    def run(self) -> Zeroization:
        """Launch, attest, release, train and wipe; returns the receipt."""
        assert "error" not in self.launch()
        result = self.attest()
        assert result.accepted, result.reason_codes
        self.answer(result)
        self.finish()
        return self.receipt()

    def receipt(self) -> Zeroization:
        """The zeroization receipt, its signature and binding checked."""
        nonce = sha256_hex(self._challenge.nonce_bytes) if self._challenge is not None else ""
        return read_zeroization(
            self.wait(ZEROIZE_DONE).body["receipt"], self.attester, run_id=RUN,
            manifest_sha256=self.package.digest, nonce_sha256=nonce,
        )  # fmt: skip

    def verdict(self) -> tuple[str, set[str]]:
        """The state that the supervisor claims, and its reasons together with the receipt's own faults."""
        body = self.wait(ZEROIZE_DONE).body
        expected = expected_wipe(self.plan, self.policy, self.events)
        assert expected is not None
        return body["state"], {*body["reasons"], *zeroization_faults(self.receipt(), expected)}

    # -- processes

    def alive(self) -> bool:
        """Whether the supervisor is running."""
        return not gone(self.pid, self.start)

    def processes(self) -> list[psutil.Process]:
        """The supervisor and every process of its session."""
        running = []
        for pid in psutil.pids() if self.pid else []:
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getsid(pid) == self.pid and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    running.append(psutil.Process(pid))
        return running

    def role(self, *words: str) -> psutil.Process:
        """The process with a role; waits until it is started."""
        return self.until(lambda: self._in_role(words), " ".join(words))

    def _in_role(self, words: tuple[str, ...]) -> psutil.Process | None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                # Between fork and exec, a child still has the supervisor's command line.
                of_supervisor = process.pid == self.pid
                if process.cmdline()[5 : 5 + len(words)] == list(words) and of_supervisor == (words == ("supervisor",)):
                    return process
        return None

    def end(self) -> None:
        """Kill the remaining processes."""
        for process in self.processes():
            process.send_signal(signal.SIGKILL)
