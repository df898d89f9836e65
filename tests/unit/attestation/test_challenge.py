"""The signed challenge, and the nonce object."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.challenge import CHALLENGE_TYPE, nonce_object, open_challenge, sign_challenge
from engine.attestation.dsse import seal_envelope
from engine.attestation.measurement import Measurements
from engine.errors import RefusedError
from engine.wire import canonical

if TYPE_CHECKING:
    from tests.unit.attestation.conftest import World


def run_public(world: World) -> bytes:
    return world.run_key.public_key().public_bytes_raw()


def refusal(envelope: object, public: bytes, run_id: str = "run-1") -> str:
    with pytest.raises(RefusedError) as caught:
        open_challenge(envelope, public, run_id=run_id)
    return caught.value.code


def test_the_attester_reads_what_the_runner_signed(world: World) -> None:
    challenge = world.challenge()
    opened = open_challenge(sign_challenge(challenge, world.run_key), run_public(world), run_id="run-1")
    assert opened == challenge
    assert len(opened.nonce_bytes) == len(opened.recipient_bytes) == 32


def test_a_challenge_signed_by_another_key_is_refused(world: World) -> None:
    envelope = sign_challenge(world.challenge(), Ed25519PrivateKey.generate())
    assert refusal(envelope, run_public(world)) == "challenge_invalid"


def test_a_challenge_of_another_run_is_refused(world: World) -> None:
    envelope = sign_challenge(world.challenge(), world.run_key)
    assert refusal(envelope, run_public(world), "run-2") == "run_mismatch"


def test_a_receipt_does_not_pass_for_a_challenge(world: World) -> None:
    payload = canonical(msgspec.to_builtins(world.challenge()))
    envelope = seal_envelope(payload, "application/vnd.in-toto+json", world.run_key)
    assert refusal(envelope, run_public(world)) == "challenge_invalid"


CHANGES: list[dict[str, Any]] = [
    {"version": 2},
    {"nonce": base64.b64encode(bytes(31)).decode()},
    {"nonce": "é"},
    {"recipient_public": ""},
    {"plan_digest": "x"},
    {"runner_head": ""},
    {"bundle": "B1" * 32},
    {"run_id": "a b"},
    {"challenge": "x" * 513},
]


@pytest.mark.parametrize("change", CHANGES, ids=[next(iter(change)) for change in CHANGES])
def test_a_malformed_challenge_is_neither_signed_nor_read(world: World, change: dict[str, Any]) -> None:
    made = world.challenge(**change)
    with pytest.raises(RefusedError) as caught:
        sign_challenge(made, world.run_key)
    assert caught.value.code == "challenge_invalid"
    envelope = seal_envelope(canonical(msgspec.to_builtins(made)), CHALLENGE_TYPE, world.run_key)
    assert refusal(envelope, run_public(world)) == "challenge_invalid"


@pytest.mark.parametrize("payload", [b"", b"[]", b'{"a":1,"a":2}', b"[" * 9000])
def test_a_signed_payload_that_is_not_a_challenge_is_refused(world: World, payload: bytes) -> None:
    assert refusal(seal_envelope(payload, CHALLENGE_TYPE, world.run_key), run_public(world)) == "challenge_invalid"


PARTS: dict[str, Any] = {
    "nonce": bytes(32),
    "cnf": bytes(32),
    "attester_public": bytes(32),
    "measurements": Measurements(bundle="00" * 32, lock="00" * 32, environment="00" * 32),
    "policy_digest": "00" * 32,
    "plan_digest": "00" * 32,
    "manifest_digest": "00" * 32,
    "challenge": None,
    "run_id": "run-1",
    "pod_id": "pod-1",
    "ssh_host_key": "00" * 32,
    "gpu_uuid": None,
}
OTHERS: list[tuple[str, Any]] = [
    ("nonce", b"\1" * 32),
    ("cnf", b"\1" * 32),
    ("attester_public", b"\1" * 32),
    ("measurements", Measurements(bundle="11" * 32, lock="00" * 32, environment="00" * 32)),
    ("measurements", Measurements(bundle="00" * 32, lock="11" * 32, environment="00" * 32)),
    ("measurements", Measurements(bundle="00" * 32, lock="00" * 32, environment="11" * 32)),
    ("policy_digest", "11" * 32),
    ("plan_digest", "11" * 32),
    ("manifest_digest", "11" * 32),
    ("challenge", ""),
    ("run_id", "run-2"),
    ("pod_id", "pod-2"),
    ("ssh_host_key", "11" * 32),
    ("gpu_uuid", ""),
]


def test_the_nonce_object_covers_every_part() -> None:
    seen = {nonce_object(**{**PARTS, name: value}) for name, value in OTHERS}
    assert len(seen) == len(OTHERS)
    assert nonce_object(**PARTS) not in seen
    assert {name for name, _ in OTHERS} == set(PARTS)
