"""Verifier and Relying Party: challenge, appraisal, and the one receipted release of the keys.

Each step is decided from what is stored, so that a restarted runner continues where the last one stopped. A release
that has a receipt is sent again byte for byte, never created again.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engine.attestation.challenge import Challenge, sign_challenge
from engine.attestation.ear import parse_result, result_digest, sign_result
from engine.attestation.nonce import NonceLedger
from engine.attestation.policy import policy_digest
from engine.attestation.reasons import REASONS, refusal
from engine.attestation.receipts import countersign, read_release
from engine.attestation.release import prepare_release
from engine.attestation.verifier import AttestationResult, Expectations, appraise
from engine.attestation.wipe_proof import Expected as ExpectedWipe
from engine.attestation.wipe_proof import contradictions
from engine.attestation.zeroization import Zeroization, read_zeroization
from engine.errors import RefusedError
from engine.events import ChallengeSent, ReleaseDenied, ReleaseGranted, ResultReached, ZeroizeDone, fields_of
from engine.plan import plan_digest
from engine.providers.protocol import Lease
from engine.records.wipe import expected_wipe, wipe_faults
from engine.remote.reconnect import Reconnecting
from engine.remote.transfer import put_inbox
from engine.runner.context import RunContext
from engine.runner.staging import CONTENT_KEYS, References
from engine.sealing.memory import wipe
from engine.sealing.release import release_info
from engine.store.failure import Failure
from engine.system.clock import unix_seconds
from engine.wire import canonical, digest_of

NONCES: Final = "nonces.json"
CHALLENGE: Final = "challenge.json"
CIPHERTEXT: Final = "release.bin"


class RelyingParty:
    """The protected segment's counterpart on the operator's side."""

    def __init__(self, context: RunContext, link: Reconnecting, run_dir: str, lease: Lease) -> None:
        self._context = context
        self._ingest = context.ingest
        self._link = link
        self._run_dir = run_dir
        self._lease = lease
        self._nonces = NonceLedger(context.folder.path / NONCES)
        self._sent: set[str] = set()
        self._result: AttestationResult | None = None
        self._result_token = ""
        self._concluded = False
        self._wipe_checked = False
        stored = context.reader.evidence(context.run_id)
        if "result" in stored:
            self._result_token = str(stored["result"].get("token"))
            self._result = parse_result(self._result_token, context.staging.run_key.public)
        released = context.reader.receipts(context.run_id).get("release")
        if released is not None:
            self._ingest.released = read_release(released, context.staging.run_key.public, run_id=context.run_id)
        self._challenge: dict[str, Any] | None = context.folder.read_json(CHALLENGE)
        if self._challenge is not None:
            self._ingest.nonce_digest = self._challenge["nonceSha256"]

    async def react(self) -> None:
        """Send what the allocation waits for, if anything."""
        if self._context.plan.segments == "raw" or self._ingest.states["segment:protected"] in {"done", "failed"}:
            self.conclude()
            return
        if self._ingest.states["segment:protected"] == "attesting" and self._ingest.token is None:
            await self._challenge_once()
        if self._ingest.token is not None and self._result is None:
            references = await asyncio.to_thread(self._context.staging.references, self._lease)
            self._appraise(self._ingest.token, references)
        self.conclude()
        if self._result is not None and not self._ingest.opened:
            await self._answer_result(self._result)

    def conclude(self) -> None:
        """Record what follows from the result and from the zeroization receipt, once there is one."""
        if self._result is not None and not self._concluded:
            self._record(self._result)
        if self._ingest.zeroization is not None and not self._wipe_checked:
            self._check_zeroization(self._ingest.zeroization)

    @property
    def _attester(self) -> bytes:
        launch = self._ingest.launch
        return b"" if launch is None else base64.b64decode(launch.attester_key)

    async def _put(self, name: str, message: object) -> None:
        data = canonical(message)
        await self._link.call(lambda session: put_inbox(session, self._run_dir, name, data))
        self._sent.add(name)

    async def _challenge_once(self) -> None:
        if CHALLENGE in self._sent:
            return
        if self._challenge is None or self._nonces.outstanding(self._context.run_id) is None:
            # There is no challenge yet, or its nonce has expired unanswered.
            self._challenge = self._make_challenge()
            self._context.folder.write_json(CHALLENGE, self._challenge)
        self._context.writer.evidence(self._context.run_id, "challenge", self._challenge["envelope"])
        await self._put(CHALLENGE, self._challenge["envelope"])

    def _make_challenge(self) -> dict[str, Any]:
        context, staging = self._context, self._context.staging
        nonce = self._nonces.issue(context.run_id)
        nonce_digest = hashlib.sha256(nonce).hexdigest()
        self._ingest.nonce_digest = nonce_digest
        context.journal.add(ChallengeSent(nonce_sha256=nonce_digest, pod_head=self._pod_head()))
        challenge = Challenge(
            run_id=context.run_id,
            nonce=base64.b64encode(nonce).decode(),
            plan_digest=plan_digest(context.plan),
            manifest_digest=staging.prepared.manifest_digest or "",
            policy_digest=policy_digest(staging.policy),
            challenge=context.plan.challenge,
            runner_head=context.journal.head,
            recipient_public=staging.recipient_public(),
            bundle=staging.bundle_digest,
        )
        return {
            "envelope": sign_challenge(challenge, staging.run_key.signing),
            "nonceSha256": nonce_digest,
            "runnerHead": challenge.runner_head,
        }

    def _pod_head(self) -> str:
        return self._context.writer.tail(self._context.run_id, "pod").head

    def _expectations(self, references: References) -> Expectations:
        context, launch = self._context, self._ingest.launch
        return Expectations(
            run_id=context.run_id,
            attester_public=self._attester,
            measurements=references.measurements,
            plan_digest=plan_digest(context.plan),
            manifest_digest=context.staging.prepared.manifest_digest or "",
            challenge=context.plan.challenge,
            pod_id=references.pod_id,
            ssh_host_key=references.ssh_host_key,
            runner_head=(self._challenge or {}).get("runnerHead", ""),
            gpu_uuid=None if launch is None or launch.gpu is None else launch.gpu.uuid,
        )

    def _appraise(self, token: str, references: References) -> None:
        context = self._context
        policy = context.staging.policy
        expected = self._expectations(references)
        writer, run_id = context.writer, context.run_id
        writer.evidence(run_id, "reference", msgspec.to_builtins(references.measurements))
        writer.evidence(run_id, "policy", msgspec.to_builtins(policy))
        # This call consumes the nonce, so the result is stored immediately: a failure in between would lose it.
        result = appraise(token, expected=expected, policy=policy, nonces=self._nonces, now=unix_seconds())
        self._result_token = sign_result(result, context.staging.run_key.signing)
        writer.evidence(run_id, "result", {"token": self._result_token})
        self._result = result

    def _record(self, result: AttestationResult) -> None:
        """Record what follows from a stored result; idempotent, as an earlier runner may have recorded only a part."""
        context = self._context
        context.writer.describe(
            context.run_id, tier=result.tier, ear_status=result.status, reason_codes=result.reason_codes
        )
        context.journal.once(
            ResultReached(
                status=result.status,
                codes=list(result.reason_codes),
                result_sha256=result_digest(self._result_token),
                pod_head=self._pod_head(),
            )
        )
        reason = "; ".join(check.reason for check in result.checks if check.reason)
        self._ingest.advance("attestation", "verified" if result.accepted else "rejected", reason)
        self._concluded = True

    async def _answer_result(self, result: AttestationResult) -> None:
        if not result.accepted:
            if "denied.json" not in self._sent:
                codes = list(result.reason_codes)
                self._context.journal.once(ReleaseDenied(codes=codes, pod_head=self._pod_head()))
                await self._put("denied.json", {"codes": codes})
        elif "release.json" not in self._sent:
            message = self._release(result)
            self._ingest.advance("key", "released")
            await self._put("release.json", message)

    def _release(self, result: AttestationResult) -> dict[str, Any]:
        """The release message: created, receipted and logged once; later calls assemble it from what is stored."""
        context, staging = self._context, self._context.staging
        receipt = context.reader.receipts(context.run_id).get("release")
        if receipt is None:
            keys = staging.run_key.open_keys(context.folder.read(CONTENT_KEYS) or b"")
            try:
                prepared = prepare_release(
                    result,
                    keys,
                    run_id=context.run_id,
                    run_key=staging.run_key.signing,
                    runner_head=context.journal.head,
                    pod_head=self._pod_head(),
                )
            finally:
                wipe(keys)
            context.folder.write(CIPHERTEXT, prepared.ciphertext)
            receipt = prepared.receipt
            context.writer.receipt(context.run_id, "release", receipt)
        body = read_release(receipt, staging.run_key.public, run_id=context.run_id)
        self._ingest.released = body
        granted = context.journal.once(ReleaseGranted(receipt_sha256=digest_of(receipt), pod_head=body.pod_head))
        ciphertext = context.folder.read(CIPHERTEXT) or b""
        if hashlib.sha256(ciphertext).hexdigest() != body.ciphertext_sha256:
            raise refusal("release_other_result", "the stored one is not the one in its receipt")
        info = release_info(
            evidence_sha256=body.evidence_sha256,
            policy_sha256=body.policy_sha256,
            manifest_sha256=body.manifest_sha256,
            run_id=context.run_id,
        )
        return {
            "ciphertext": base64.b64encode(ciphertext).decode(),
            "info": base64.b64encode(info).decode(),
            "receipt": receipt,
            "runnerHead": granted.hash,
        }

    def _check_zeroization(self, done: ZeroizeDone) -> None:
        """Read the attester's zeroization receipt field by field, and countersign it if an honest worker can have made
        it; it may still prove nothing.
        """
        self._wipe_checked = True
        context, receipt = self._context, fields_of(done.receipt)
        try:
            proof, expected = self._read_zeroization(receipt)
        except RefusedError as error:
            self._ingest.advance("runtime", "unverified", Failure.of(error))
            return
        envelope = countersign(receipt, context.staging.run_key.signing)
        context.writer.receipt(context.run_id, "zeroization", envelope)
        faults = wipe_faults(proof, done, expected)
        if not faults:
            self._ingest.advance("key", "destroyed")
            self._ingest.advance("runtime", "zeroized")
        else:
            self._ingest.advance("runtime", "unverified", _unproven(faults))

    def _read_zeroization(self, receipt: dict[str, Any]) -> tuple[Zeroization, ExpectedWipe]:
        """The receipt, and what it agrees with; raises `RefusedError` for one that must not be countersigned."""
        context = self._context
        proof = read_zeroization(
            receipt,
            self._attester,
            run_id=context.run_id,
            manifest_sha256=context.staging.prepared.manifest_digest or "",
            nonce_sha256=self._ingest.nonce_digest or "",
        )
        log = list(context.reader.events(context.run_id, "pod"))
        expected = expected_wipe(context.plan, context.staging.policy, log)
        if expected is None:
            raise refusal("zeroization_other_log", "its log has another one")
        if found := contradictions(proof, expected):
            raise refusal(found[0], ", ".join(found[1:]))
        return proof, expected


def _unproven(faults: Sequence[str]) -> Failure:
    """Some of the codes may be words of the allocation: ours says what to do."""
    code = next((fault for fault in faults if fault in REASONS), "zeroization_not_claimed")
    return Failure.of(refusal(code, ", ".join(fault for fault in faults if fault != code)))
