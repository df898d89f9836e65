"""An allocation in the hands of an attacker, at the other end of a real link from the real runner's parts.

The attacker has the files, the attester's key and the measurements, which the software tier cannot keep from it. The
tests decide what it writes; nothing on the operator's side is changed for them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.attestation.challenge import open_challenge
from engine.attestation.claims import Observed, make_claims
from engine.attestation.evidence import sign_evidence
from engine.attestation.policy import CONTROLS
from engine.attestation.receipts import Closing, closing_receipt
from engine.attestation.zeroization import Zeroization, zeroization_receipt
from engine.plan import load_plan
from engine.providers.protocol import Lease
from engine.providers.settings import load_settings
from engine.records.facts import gather
from engine.records.row import build_row
from engine.remote.launch import Launched
from engine.remote.reconnect import Reconnecting
from engine.runner.context import RunContext
from engine.runner.environment_local import EnvironmentReference
from engine.runner.folder import RunFolder
from engine.runner.follow import Follower
from engine.runner.ingest import Ingest
from engine.runner.journal import Journal
from engine.runner.staging import Staging
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.wire import (
    ADAPTER_SEALED,
    ATTEST_EVIDENCE,
    LAUNCH_ACCEPTED,
    RUN_CLOSED,
    SEGMENT_STATE,
    ZEROIZE_DONE,
    ChainWriter,
    to_line,
    utc_now,
)
from engine.worker.isolation.procfs import start_time
from tests.vectors import honest

SECONDS = 60.0
ADAPTER = "0" * 64
IDENTITY = {
    "nonce": base64.b64encode(bytes(16)).decode(), "firstProcessStart": 1, "gpuUuid": None, "podId": None, "cpu": "x",
}  # fmt: skip


async def end_of(following: asyncio.Task[None]) -> None:
    """Wait for the follower to end; raises its exception, or `TimeoutError` when it does not end."""
    await asyncio.wait_for(following, SECONDS)


class Pod:
    """The attacker's side: a log, an inbox, keys."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder
        self.run_id = run_id
        self.chain = ChainWriter(run_id)
        self.attester = Ed25519PrivateKey.generate()
        self.cnf = X25519PrivateKey.generate()
        for name in ("inbox", "outbox/protected", "scratch", "package"):
            (folder / name).mkdir(parents=True)

    @property
    def log(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def attester_public(self) -> bytes:
        return self.attester.public_key().public_bytes_raw()

    def write(self, data: bytes) -> None:
        """Append arbitrary bytes to the log."""
        with self.log.open("ab") as file:
            file.write(data)

    def line(self, event: str, body: dict[str, Any]) -> bytes:
        """The next line of an honest chain, not written yet."""
        return to_line(self.chain.append(event, body))

    def say(self, event: str, body: dict[str, Any]) -> None:
        self.write(self.line(event, body))

    def state(self, state: str, **detail: Any) -> None:
        self.say(SEGMENT_STATE, {"segment": "protected", "state": state, "at": 1.0, **detail})

    def say_sealed(self, **fields: Any) -> None:
        """Log a sealed adapter with made-up digests, except for those in `fields`."""
        digests = dict.fromkeys(("sha256", "sealedSha256", "tensorDigest", "nonceSha256", "runnerHead"), "0" * 64)
        self.say(ADAPTER_SEALED, {"segment": "protected", "size": 1, "sealedSize": 1, **digests, **fields})

    def say_closed(self, runner_head: str) -> None:
        """Close the log as an honest attester does, over the given runner head."""
        closing = Closing(run_id=self.run_id, pod_head=self.chain.head, runner_head=runner_head, closed=utc_now())
        receipt = closing_receipt(closing, self.attester)
        self.say(RUN_CLOSED, {"runnerHead": runner_head, "failed": None, "receipt": receipt})

    async def message(self, name: str) -> dict[str, Any]:
        """Wait for a message that the runner puts into the inbox."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if (self.folder / "inbox" / name).exists():
                content: dict[str, Any] = json.loads((self.folder / "inbox" / name).read_bytes())
                return content
            await asyncio.sleep(0.01)
        raise AssertionError(f"the runner sent no {name}")


class Operator:
    """The operator's side: the real parts of a runner, up to the launched supervisor, which is the attacker."""

    def __init__(
        self, home: Path, run_id: str, lease: Lease, link: Reconnecting, reference: EnvironmentReference
    ) -> None:
        self.writer, self.reader = Writer(home), Reader(home)
        self.folder = RunFolder(home, run_id)
        self.plan = load_plan(self.reader.run(run_id).plan)
        journal = Journal(self.writer, self.reader, run_id)
        ingest = Ingest(self.writer, self.reader, run_id)
        staging = Staging(self.plan, self.folder, self.writer, journal, run_id)
        staging._reference = reference  # measured once for all runs of a module
        staging.prepare(load_settings(home))
        ingest.expected = staging.expected(lease)
        self.context = RunContext(
            run_id, self.plan, self.writer, self.reader, journal, ingest, self.folder, staging
        )  # fmt: skip
        self.lease, self.link, self.run_id = lease, link, run_id
        self.run_dir = staging.run_dir(lease)
        self.pod = Pod(Path(self.run_dir), run_id)
        self.sealed = False

    def follower(self) -> Follower:
        """The part of the runner that follows the run; a second one acts as a restarted runner."""
        launched = Launched(pid=os.getpid(), start=start_time(os.getpid()) or 0, bundle="")
        return Follower(self.context, self.link, self.run_dir, launched, self.lease)

    def restarted(self) -> Follower:
        """A new runner over what the first one stored."""
        context = self.context
        again = Ingest(self.writer, self.reader, self.run_id)
        again.expected = context.ingest.expected
        self.context = RunContext(
            self.run_id, self.plan, self.writer, self.reader, Journal(self.writer, self.reader, self.run_id), again,
            self.folder, context.staging,
        )  # fmt: skip
        return self.follower()

    def launch(self, **changes: Any) -> dict[str, Any]:
        """What an honest supervisor announces."""
        expected = self.context.ingest.expected
        assert expected is not None
        return {
            "attesterKey": base64.b64encode(self.pod.attester_public).decode(),
            "bundleDigest": expected.bundle_digest,
            "jobDigest": expected.job_digest,
            "pid": 1, "identity": IDENTITY, "cpu": "x", "gpu": None, **changes,
        }  # fmt: skip

    async def token(self, *, edits: dict[str, Any] | None = None, **arguments: Any) -> str:
        """Evidence that answers the challenge and meets every rule, except for the given arguments and edits."""
        staging = self.context.staging
        envelope = await self.pod.message("challenge.json")
        challenge = open_challenge(envelope, staging.run_key.public, run_id=self.run_id)
        references = await asyncio.to_thread(staging.references, self.lease)
        honest_claims: dict[str, Any] = {
            "attester_public": self.pod.attester_public,
            "cnf": self.pod.cnf.public_key().public_bytes_raw(),
            "measurements": references.measurements,
            "enforcement": {name: Observed("enforced", "seen") for name in CONTROLS},
            "pod_head": self.pod.chain.head,
            "pod_id": references.pod_id,
            "ssh_host_key": references.ssh_host_key,
            "gpu_uuid": None, "hwmodel": "x", "swversion": "x", "submods": {}, "now": time.time(),
        }  # fmt: skip
        claims = make_claims(challenge, **{**honest_claims, **arguments})
        return sign_evidence(msgspec.structs.replace(claims, **(edits or {})), self.pod.attester)

    async def attest(self, token: str | None = None, **arguments: Any) -> None:
        """Launch, then evidence: `token`, or what `self.token` answers to the challenge."""
        self.pod.say(LAUNCH_ACCEPTED, self.launch())
        self.pod.state("launching")
        self.pod.state("attesting")
        answer = await self.token(**arguments) if token is None else token
        self.pod.say(ATTEST_EVIDENCE, {"token": answer})

    async def released(self) -> dict[str, Any]:
        """Honest evidence, and the release that follows."""
        await self.attest()
        return await self.pod.message("release.json")

    def names(self) -> list[str]:
        """The events of the runner's own log."""
        return [event.event for event in self.reader.events(self.run_id, "runner")]

    def checks(self) -> dict[str, str]:
        """The status of each check of the row that is built from these facts."""
        row, checks = build_row(gather(self.reader, self.run_id), state="failed", reason="")
        assert row["clean"] is False
        return {check.name: check.status for check in checks}

    def zeroized(self, **changes: Any) -> Zeroization:
        """A zeroization predicate for this run that proves the wipe, of an adapter that is logged before it."""
        if not self.sealed:
            self.sealed = True
            self.pod.say_sealed()
        now = utc_now()
        proof = honest.zeroization(
            run_id=self.run_id,
            manifest_sha256=self.context.staging.prepared.manifest_digest or "",
            nonce_sha256=self.context.ingest.nonce_digest or "",
            adapter_sha256=ADAPTER,
            pod_head=self.pod.chain.head,
            began=now,
            ended=now,
        )
        return msgspec.structs.replace(proof, **changes)

    def say_zeroized(self, proof: Zeroization, key: Ed25519PrivateKey | None = None) -> None:
        """The receipt of that proof, as the supervisor logs it."""
        receipt = zeroization_receipt(proof, key or self.pod.attester)
        self.pod.say(ZEROIZE_DONE, {"segment": "protected", "state": "zeroized", "reasons": [], "receipt": receipt})

    def assert_nothing_released(self) -> None:
        """No key left the operator's machine, and none is recorded as released."""
        assert not (self.pod.folder / "inbox" / "release.json").exists()
        assert self.folder.read("release.bin") is None
        assert "release" not in self.reader.receipts(self.run_id)
        assert self.reader.run(self.run_id).summary.key == "withheld"
