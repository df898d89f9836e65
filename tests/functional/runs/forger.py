"""Re-signs an artifact with freshly generated keys: operator and machine colluding, who can fabricate a whole row.

Every signature, digest and hash link is valid, so only a check of the content can refuse a change made on the way.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.challenge import Challenge, sign_challenge
from engine.attestation.claims import bound_nonce
from engine.attestation.ear import claims_of, peek_result, result_digest
from engine.attestation.evidence import Claims, parse_evidence, sign_evidence
from engine.attestation.receipts import (
    Closing,
    Release,
    closing_receipt,
    countersign,
    delegate,
    release_receipt,
    run_receipt,
)
from engine.attestation.tokens import sign_token
from engine.attestation.verifier import AttestationResult
from engine.attestation.zeroization import Zeroization, zeroization_receipt
from engine.measure.stepchain import step_chain
from engine.records.artifact import Blob, packed, unpacked
from engine.store.progress import Steps, body_of
from engine.store.views import Series
from engine.wire import TRAIN_PROGRESS, ChainWriter, canonical, committed, digest_of, event_hash, sha256_hex

Edit = Callable[[Any], Any]


def predicate(envelope: dict[str, Any]) -> dict[str, Any]:
    """The predicate of an envelope; its signature is not checked."""
    statement: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))
    content: dict[str, Any] = statement.get("predicate", statement)
    return content


def public(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


class Forger:
    """Rebuilds an exported document. `edits` maps a part's name to a function that changes it: `plan`, `policy`,
    `challenge`, `claims`, `result`, `ear` (its claims), `release`, `zeroization`, `closing`, `series`, `row`,
    `delegation`, `bundle_sha256`, and `runner:EVENT` or `pod:EVENT` for a body (None drops the event).
    """

    def __init__(self, document: dict[str, Any], **edits: Edit) -> None:
        self.edits = edits
        self.document: dict[str, Any] = json.loads(json.dumps(document))
        self.bundle = self.document["bundle"]
        self.run_id = str(document["id"])
        self.operator, self.run, self.attester = (Ed25519PrivateKey.generate() for _ in range(3))
        self._hashes: dict[str, str] = {}
        self._logs = self.bundle["logs"]
        self._old = {entry["hash"] for log in self._logs.values() for entry in log}
        self._chains = {name: ChainWriter(self.run_id) for name in ("runner", "pod")}
        self._rebuilt: dict[str, list[dict[str, Any]]] = {"runner": [], "pod": []}
        self._old_attester = base64.b64decode(self._logs["pod"][0]["body"]["attesterKey"])
        self.series: dict[str, Series] = {}

    def _edited(self, name: str, value: Any) -> Any:
        return self.edits[name](value) if name in self.edits else value

    def build(self) -> dict[str, Any]:
        """The forged document."""
        bundle = self.bundle
        old_plan = digest_of(bundle["plan"])
        bundle["plan"] = self._edited("plan", bundle["plan"])
        bundle["policy"] = self._edited("policy", bundle["policy"])
        self.plan, self.policy = digest_of(bundle["plan"]), digest_of(bundle["policy"])
        self._hashes[old_plan] = self.plan
        self._old.add(old_plan)
        self._rebuild_series()
        old = predicate(bundle["delegation"])
        bundle["delegation"] = self._edited(
            "delegation",
            delegate(self.operator, public(self.run), run_id=self.run_id, plan_digest=self.plan, seconds=10**6),
        )
        assert old["run_id"] == self.run_id
        bundle["operator"] = public(self.operator).hex()
        self._rebuild_logs()
        self._sign_row()
        return self.document

    def _rebuild_series(self) -> None:
        self.series = {kind: unpacked(msgspec.convert(blob, Blob)) for kind, blob in self.bundle["series"].items()}
        self.series = self._edited("series", self.series)
        self.bundle["series"] = {kind: msgspec.to_builtins(packed(one)) for kind, one in self.series.items()}

    def _rebuild_logs(self) -> None:
        waiting = {name: list(log) for name, log in self._logs.items()}
        while any(waiting.values()):
            ready = [name for name, log in waiting.items() if log and self._is_ready(log[0])]
            assert ready, "the logs wait for each other"
            entry = waiting[ready[0]].pop(0)
            self._append(ready[0], entry)
        self.bundle["logs"] = self._rebuilt
        self.bundle["heads"] = {name: chain.head for name, chain in self._chains.items()}

    def _is_ready(self, entry: dict[str, Any]) -> bool:
        named = json.dumps(entry["body"])
        if entry["event"] == "attest.evidence":
            heads = parse_evidence(entry["body"]["token"], self._old_attester).heads
            named += heads.runner + heads.pod
        if entry["event"] == "release.granted":
            named += predicate(self.bundle["receipts"]["release"])["pod_head"]
        return not any(old in named for old in self._old - self._hashes.keys())

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._mapped(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._mapped(inner) for inner in value]
        return self._hashes.get(value, value) if isinstance(value, str) else value

    def _append(self, chain: str, entry: dict[str, Any]) -> None:
        event = entry["event"]
        self._now = entry["ts"]
        special = getattr(self, f"_{chain}_{event.replace('.', '_')}", None)
        body = self._mapped(entry["body"])
        body = self._edited(f"{chain}:{event}", special(body) if special else body)
        if body is None:
            self._hashes[entry["hash"]] = self._chains[chain].head
            return
        if event == TRAIN_PROGRESS and body["to"] <= len(self.series[body["segment"]].losses):
            one, first, last = self.series[body["segment"]], body["from"], body["to"]
            losses = np.array(one.losses[first:last], dtype="<f4").tobytes()
            nanos = np.array(one.nanos[first:last], dtype="<u8").tobytes()
            body = committed(event, body_of(Steps(body["segment"], first, losses, nanos)))
        log = self._chains[chain]
        new_hash = event_hash(log.next_seq, log.head, entry["ts"], event, self.run_id, body)
        self._hashes[entry["hash"]] = new_hash
        self._rebuilt[chain].append(
            {"seq": log.next_seq, "ts": entry["ts"], "event": event, "hash": new_hash, "body": body}
        )
        log.head, log.next_seq = new_hash, log.next_seq + 1
        after = getattr(self, f"_after_{chain}_{event.replace('.', '_')}", None)
        if after:
            after()

    # Parts that are signed again while the logs are rebuilt

    def _pod_launch_accepted(self, body: dict[str, Any]) -> dict[str, Any]:
        return body | {"attesterKey": base64.b64encode(public(self.attester)).decode()}

    def _after_runner_attest_challenge(self) -> None:
        old = msgspec.convert(predicate(self.bundle["challenge"]), Challenge)
        changed = msgspec.structs.replace(
            old, plan_digest=self.plan, policy_digest=self.policy, runner_head=self._chains["runner"].head
        )
        self.bundle["challenge"] = sign_challenge(self._edited("challenge", changed), self.run)

    def _pod_attest_evidence(self, body: dict[str, Any]) -> dict[str, Any]:
        old = parse_evidence(body["token"], self._old_attester)
        heads = type(old.heads)(self._hashes[old.heads.runner], self._hashes[old.heads.pod])
        changed = msgspec.structs.replace(
            old, attester_key=public(self.attester), plan_digest=self.plan, policy_digest=self.policy, heads=heads
        )
        changed = self._edited("claims", changed)
        bound: Claims = msgspec.structs.replace(changed, eat_nonce=bound_nonce(changed))
        token = sign_evidence(bound, self.attester)
        self.bundle["evidence"] = token
        return {"token": token}

    def _runner_attest_result(self, body: dict[str, Any]) -> dict[str, Any]:
        old = peek_result(self.bundle["result"])
        assert old is not None
        nonce = parse_evidence(self.bundle["evidence"], public(self.attester)).eat_nonce
        changed = msgspec.structs.replace(
            old, evidence_sha256=sha256_hex(self.bundle["evidence"].encode()), policy_sha256=self.policy, nonce=nonce
        )
        self.result: AttestationResult = self._edited("result", changed)
        # Not by `sign_result`, which refuses to sign a result that claims too much.
        ear = self._edited("ear", claims_of(self.result))
        self.bundle["result"] = sign_token(canonical(ear), self.run)
        outcome = {"status": self.result.status, "codes": list(self.result.reason_codes)}
        return body | outcome | {"resultSha256": result_digest(self.bundle["result"])}

    def _runner_release_granted(self, body: dict[str, Any]) -> dict[str, Any]:
        old = msgspec.convert(self._mapped(predicate(self.bundle["receipts"]["release"])), Release)
        changed = msgspec.structs.replace(
            old, result_sha256=result_digest(self.bundle["result"]), evidence_sha256=self.result.evidence_sha256,
            policy_sha256=self.policy, runner_head=self._chains["runner"].head,
        )  # fmt: skip
        receipt = release_receipt(self._edited("release", changed), self.run)
        self.bundle["receipts"]["release"] = receipt
        return body | {"receiptSha256": digest_of(receipt)}

    def _pod_train_measured(self, body: dict[str, Any]) -> dict[str, Any]:
        one = self.series[body["segment"]]
        return body | {"steps": len(one.nanos), "elapsedNs": sum(one.nanos)}

    def _pod_train_finished(self, body: dict[str, Any]) -> dict[str, Any]:
        one = self.series[body["segment"]]
        chained = None if body["stepChain"] is None else step_chain(one.losses, one.nanos)
        counted = {"steps": len(one.nanos), "elapsedNs": sum(one.nanos)}
        return body | counted | {"stepChain": chained, "finalLoss": one.losses[-1]}

    def _pod_zeroize_done(self, body: dict[str, Any]) -> dict[str, Any]:
        old = msgspec.convert(predicate(body["receipt"]), Zeroization)
        changed = msgspec.structs.replace(old, pod_head=self._chains["pod"].head)
        receipt = zeroization_receipt(self._edited("zeroization", changed), self.attester)
        self.bundle["receipts"]["zeroization"] = countersign(receipt, self.run)
        return body | {"receipt": receipt}

    def _pod_run_closed(self, body: dict[str, Any]) -> dict[str, Any]:
        changed = Closing(
            run_id=self.run_id, pod_head=self._chains["pod"].head, runner_head=body["runnerHead"], closed=self._now
        )
        return body | {"receipt": closing_receipt(self._edited("closing", changed), self.attester)}

    def _sign_row(self) -> None:
        row = {name: value for name, value in self.document.items() if name not in ("format", "bundle")}
        row = self._edited("row", row | {"planDigest": self.plan})
        old = predicate(self.bundle["receipts"]["run"])
        self.bundle["receipts"]["run"] = run_receipt(
            run_id=self.run_id, row=row, plan_digest=self.plan, manifest_sha256=old["manifest_sha256"],
            adapters={kind: row[f"{kind}AdapterSha256"] for kind in old["adapters"]},
            series={kind: step_chain(one.losses, one.nanos) for kind, one in self.series.items()},
            runner_head=self._chains["runner"].head, pod_head=self._chains["pod"].head,
            delegation=self.bundle["delegation"], bundle_sha256=self._edited("bundle_sha256", old["bundle_sha256"]),
            challenge=row["challenge"],
            privates=[self.run],
        )  # fmt: skip
        self.document = {"format": self.document["format"], **row, "bundle": self.bundle}
