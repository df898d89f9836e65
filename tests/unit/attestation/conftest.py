"""An honest attester and its verifier; tests change one thing at a time to make the attester dishonest."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, settings

from engine.attestation.challenge import Challenge
from engine.attestation.claims import Claims, Observed, make_claims
from engine.attestation.evidence import sign_evidence
from engine.attestation.measurement import Measurements
from engine.attestation.nonce import NonceLedger
from engine.attestation.policy import CONTROLS, Policy, default_policy, policy_digest
from engine.attestation.verifier import AttestationResult, Expectations, appraise

NOW = 1_790_000_000.0

settings.register_profile("no_deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_deadline")  # a test must not fail because the machine is busy


class Clock:
    """Seconds since boot, and the boot, as a test sets them."""

    def __init__(self) -> None:
        self.seconds = 5_000.0
        self.boot = "boot-1"


class World:
    """One run: an attester with its keys, and a verifier with its ledger and reference values."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.ledger_path = folder / "nonces.json"
        self.ledger = self.new_ledger()
        self.policy: Policy = default_policy()
        self.attester = Ed25519PrivateKey.generate()
        self.run_key = Ed25519PrivateKey.generate()
        self.cnf = X25519PrivateKey.generate()
        self.measurements = Measurements(bundle="b1" * 32, lock="10" * 32, environment="e0" * 32)
        self.expected = Expectations(
            run_id="run-1",
            attester_public=self.attester_public,
            measurements=self.measurements,
            plan_digest="01" * 32,
            manifest_digest="02" * 32,
            challenge="a buyer's text",
            pod_id="pod-1",
            ssh_host_key="03" * 32,
            runner_head="04" * 32,
            gpu_uuid="GPU-1",
        )

    @property
    def attester_public(self) -> bytes:
        return self.attester.public_key().public_bytes_raw()

    @property
    def cnf_public(self) -> bytes:
        return self.cnf.public_key().public_bytes_raw()

    def new_ledger(self) -> NonceLedger:
        """A new ledger over the same file, as after a restart of the runner."""
        return NonceLedger(self.ledger_path, clock=lambda: self.clock.seconds, boot=lambda: self.clock.boot)

    def challenge(self, **changes: Any) -> Challenge:
        made = Challenge(
            run_id="run-1",
            nonce=base64.b64encode(self.ledger.issue("run-1")).decode(),
            plan_digest=self.expected.plan_digest,
            manifest_digest=self.expected.manifest_digest,
            policy_digest=policy_digest(self.policy),
            challenge=self.expected.challenge,
            runner_head=self.expected.runner_head,
            recipient_public=base64.b64encode(secrets.token_bytes(32)).decode(),
            bundle=self.measurements.bundle,
        )
        return msgspec.structs.replace(made, **changes)

    def claims(self, challenge: Challenge | None = None, **arguments: Any) -> Claims:
        """Honest claims; `arguments` replace those of `make_claims`, so that the nonce object covers them."""
        honest: dict[str, Any] = {
            "attester_public": self.attester_public,
            "cnf": self.cnf_public,
            "measurements": self.measurements,
            "enforcement": {name: Observed("enforced", "seen") for name in CONTROLS},
            "pod_head": "05" * 32,
            "pod_id": "pod-1",
            "ssh_host_key": "03" * 32,
            "gpu_uuid": "GPU-1",
            "hwmodel": "AMD EPYC",
            "swversion": "0.1.0",
            "submods": {"process": {"pid": 7}, "cpu": {"model": "AMD EPYC"}, "gpu0": {"uuid": "GPU-1"}},
            "now": NOW,
        }
        return make_claims(challenge or self.challenge(), **{**honest, **arguments})

    def token(self, claims: Claims | None = None, **edits: Any) -> str:
        """A signed token; `edits` change claims after the nonce object was computed."""
        return sign_evidence(msgspec.structs.replace(claims or self.claims(), **edits), self.attester)

    @cached_property
    def one_token(self) -> str:
        """The same honest token every time, for tests that change it many times."""
        return self.token()

    def appraise(self, token: str, **changes: Any) -> AttestationResult:
        policy: Policy = changes.pop("policy", self.policy)
        now: float = changes.pop("now", NOW + 1)
        expected = msgspec.structs.replace(self.expected, **changes)
        return appraise(token, expected=expected, policy=policy, nonces=self.ledger, now=now)

    def codes(self, token: str, **changes: Any) -> tuple[str, ...]:
        """Appraise a token that must be refused; returns the reason codes."""
        result = self.appraise(token, **changes)
        assert result.status == "contraindicated"
        assert not result.accepted
        assert result.cnf is None
        return result.reason_codes


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def resigned(world: World) -> Callable[[dict[str, Any], dict[str, Any]], str]:
    """Makes tokens with arbitrary header and payload changes, signed by the attester's own key."""
    from joserfc import jws
    from joserfc.jwk import OKPKey

    from engine.wire import canonical, parse

    def make(header: dict[str, Any], payload: dict[str, Any]) -> str:
        parts = world.token().split(".")
        pad = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts[:2]]
        changed = canonical({**parse(pad[1]), **payload})
        return jws.serialize_compact(
            {**parse(pad[0]), **header}, changed, OKPKey.import_key(world.attester), algorithms=["Ed25519"]
        )

    return make
