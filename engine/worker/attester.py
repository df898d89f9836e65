"""The Attester's side of attestation: measure, answer the challenge with evidence, take the release."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from engine import __version__
from engine.attestation.challenge import Challenge, open_challenge
from engine.attestation.claims import Scalar, make_claims
from engine.attestation.enforcement import Reports, combined
from engine.attestation.evidence import sign_evidence
from engine.attestation.measurement import (
    EnvironmentMeasurement,
    Listing,
    Measurements,
    listed_environment,
)
from engine.attestation.reasons import REASONS, refusal
from engine.attestation.receipts import read_release
from engine.errors import GlasshouseError, RefusedError
from engine.events import AntiDebugReady, ChallengeTaken, Control, DenialTaken, EvidenceSent, Measured, PackageOpened
from engine.sealing.manifest import is_digest
from engine.system.clock import unix_seconds
from engine.wire import sha256_hex
from engine.worker.context import Context
from engine.worker.identity import cpu_name
from engine.worker.isolation import memfd
from engine.worker.isolation.wipe import trim

LOCK_NAME: Final = "worker.lock"
_CODE: Final = re.compile("[a-z][a-z0-9_]{0,63}")


class EnvironmentMeasuring:
    """Measures the environment in a thread, while the processes of the segment import from it.

    Create it before the first of them starts, so that every file they load is listed beforehand. `result` refuses if
    anything was touched since: no file can be swapped for the import and restored for the measurement.
    """

    def __init__(self, sites: tuple[str, ...]) -> None:
        self._sites = sites
        listing = listed_environment(sites)
        self._fingerprint = listing.fingerprint
        self._measurement: EnvironmentMeasurement | None = None
        self._error: GlasshouseError | None = None
        self._thread = threading.Thread(target=self._measure, args=(listing,), name="measuring")
        self._thread.start()

    def _measure(self, listing: Listing) -> None:
        try:
            self._measurement = listing.measure()
        except GlasshouseError as error:
            self._error = error

    def result(self) -> EnvironmentMeasurement:
        """Wait for the measurement; raises `RefusedError` (`environment_unreadable`, `environment_changed`).

        Call it once every process of the segment has finished its imports.
        """
        self._thread.join()
        if self._measurement is None:
            raise self._error or refusal("environment_unreadable", "it was not measured")
        if listed_environment(self._sites).fingerprint != self._fingerprint:
            raise refusal("environment_changed")
        trim()  # the listings were large, and the scan of this process takes longer with every free page
        return self._measurement


def lock_of(bundle: bytes) -> str:
    """SHA-256 of the lock inside a bundle, in hex."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return sha256_hex(archive.read(LOCK_NAME))


class Attestation:
    """One protected segment's evidence and release. `give_up` is called while waiting and may raise."""

    def __init__(
        self,
        context: Context,
        environment: EnvironmentMeasurement,
        enforcement: Reports,
        cnf: str,
        give_up: Callable[[], None],
    ) -> None:
        self._context = context
        self._give_up = give_up
        self._cnf = base64.b64decode(cnf)
        self._enforcement = enforcement
        bundle = context.bundle.content()
        self._measurements = Measurements(
            bundle=sha256_hex(bundle), lock=lock_of(bundle), environment=environment.digest
        )
        self._evidence_digest = ""
        self._ciphertext_digest = ""
        self.runner_head = ""
        self.nonce_digest = ""
        log = context.log
        log.add(
            AntiDebugReady(segment="protected", enforcement=msgspec.convert(enforcement, dict[str, dict[str, Control]]))
        )
        log.add(
            Measured(
                bundle=self._measurements.bundle,
                lock=self._measurements.lock,
                environment=environment.digest,
                environment_files=environment.files,
                environment_bytes=environment.bytes,
            )
        )

    def answer_challenge(self) -> None:
        """Wait for the runner's challenge and log the evidence that answers it."""
        context, job = self._context, self._context.job
        message = context.inbox.wait("challenge.json", job.limits.challenge, give_up=self._give_up)
        challenge = open_challenge(message, base64.b64decode(job.run_public_key), run_id=job.run_id)
        if (challenge.plan_digest, challenge.manifest_digest, challenge.policy_digest, challenge.recipient_public) != (
            job.plan_digest,
            job.manifest_digest,
            job.policy_digest,
            job.recipient_public_key,
        ):
            raise refusal("challenge_mismatch", "it was issued for another job than the staged one")
        self.runner_head = challenge.runner_head
        self.nonce_digest = hashlib.sha256(challenge.nonce_bytes).hexdigest()
        context.log.add(ChallengeTaken(runner_head=challenge.runner_head, nonce_sha256=self.nonce_digest))
        token = self._sign(challenge)
        self._evidence_digest = sha256_hex(token.encode())
        context.log.add(EvidenceSent(token=token))

    def _sign(self, challenge: Challenge) -> str:
        context = self._context
        claims = make_claims(
            challenge,
            attester_public=context.attester.public_key().public_bytes_raw(),
            cnf=self._cnf,
            measurements=self._measurements,
            enforcement=combined(self._enforcement, bundle_sealed=self._bundle_sealed()),
            pod_head=context.log.head,
            pod_id=context.job.allocation_id,
            ssh_host_key=context.job.ssh_host_key_digest,
            gpu_uuid=context.identity.gpu_uuid,
            hwmodel=cpu_name(),
            swversion=__version__,
            submods=self._submods(),
            now=unix_seconds(),
            debug=being_traced(),
        )
        return sign_evidence(claims, context.attester)

    def _bundle_sealed(self) -> bool:
        return memfd.is_sealed(self._context.bundle.fd, memfd.CODE_SEALS)

    def _submods(self) -> dict[str, dict[str, Scalar]]:
        process: dict[str, Scalar] = {
            f"{role}.{name}": seen["value"]
            for role, report in self._enforcement.items()
            for name, seen in report.items()
        }
        gpu: dict[str, Scalar] = {"uuid": self._context.identity.gpu_uuid, "attested": False}
        return {
            "process": process,
            "cpu": {"model": cpu_name(), "attested": False},
            **({"gpu0": gpu} if self._context.identity.gpu_uuid else {}),
        }

    def await_release(self) -> dict[str, str]:
        """The release's ciphertext and info, once its receipt is verified; raises `RefusedError` if it was denied."""
        context, job = self._context, self._context.job
        name = context.inbox.wait_for_one(("release.json", "denied.json"), job.limits.release, give_up=self._give_up)
        message = context.inbox.take(name) or {}
        if name == "denied.json":
            sent = message.get("codes")
            codes = [str(code) for code in sent[:16] if _CODE.fullmatch(str(code))] if isinstance(sent, list) else []
            context.log.add(DenialTaken(codes=codes))
            raise RefusedError(
                f"The verifier refused the evidence: {', '.join(codes) or 'no reason given'}.",
                next((REASONS[code][1] for code in codes if code in REASONS), ""),
                code=codes[0] if codes else "release_denied",
            )
        receipt = read_release(message.get("receipt"), base64.b64decode(job.run_public_key), run_id=job.run_id)
        ciphertext = str(message.get("ciphertext"))
        try:
            sealed = base64.b64decode(ciphertext, validate=True)
        except ValueError as error:
            raise refusal("release_other_result") from error
        expected = (self._evidence_digest, sha256_hex(sealed), self._cnf.hex(), job.policy_digest, job.manifest_digest)
        stated = (receipt.evidence_sha256, receipt.ciphertext_sha256, receipt.cnf_public)
        if (*stated, receipt.policy_sha256, receipt.manifest_sha256) != expected or not is_digest(
            str(message.get("runnerHead"))
        ):
            raise refusal("release_other_result", "it was made for other evidence than this segment sent")
        self.runner_head = str(message.get("runnerHead"))
        self._ciphertext_digest = receipt.ciphertext_sha256
        return {"ciphertext": ciphertext, "info": str(message.get("info"))}

    def completed(self, opened: dict[str, Any]) -> None:
        """Log that the package is open, linked to the release in the runner's log."""
        self._context.log.add(
            PackageOpened(
                segment="protected",
                runner_head=self.runner_head,
                manifest_sha256=opened["manifest_sha256"],
                ciphertext_sha256=self._ciphertext_digest,
            )
        )


def being_traced() -> bool:
    """Whether a debugger is attached to this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1]) != 0
    return False
