"""Receipts and evidence between our code and the libraries used directly, in both directions.

The first half is the view of a stranger without our code: it reads what our code made, with the libraries alone.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws, jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import OKPKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from engine.attestation.receipts import countersign, delegate, run_receipt
from engine.attestation.release import prepare_release
from engine.attestation.revocation import revocation_statement, rotation_statement
from engine.attestation.zeroization import zeroization_receipt
from engine.sealing.memory import random_keys
from tests.unit.attestation.test_zeroization import proof

if TYPE_CHECKING:
    from tests.unit.attestation.conftest import World

README = Path(__file__).parents[3] / "engine" / "attestation" / "README.md"
OPERATOR, ATTESTER, RUN_KEY, OTHER = (Ed25519PrivateKey.generate() for _ in range(4))
PLAN = "01" * 32
NOW = datetime(2026, 5, 17, tzinfo=UTC)
ROW: dict[str, Any] = {"id": "run-1", "overheadPct": 1.25}
Made = tuple[dict[str, Any], tuple[Ed25519PrivateKey, ...]]


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def name(key: Ed25519PrivateKey) -> str:
    return hashlib.sha256(raw(key)).hexdigest()


def pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def delegation(_: World) -> Made:
    made = delegate(OPERATOR, raw(RUN_KEY), run_id="run-1", plan_digest=PLAN, seconds=60, now=NOW)
    return made, (OPERATOR,)


def release(world: World) -> Made:
    prepared = prepare_release(
        world.appraise(world.token()),
        random_keys(1),
        run_id="run-1",
        run_key=world.run_key,
        runner_head="0a" * 32,
        pod_head="0b" * 32,
    )
    return prepared.receipt, (world.run_key,)


def zeroization(_: World) -> Made:
    return countersign(zeroization_receipt(proof(), ATTESTER), RUN_KEY), (ATTESTER, RUN_KEY)


def run(world: World) -> Made:
    made = run_receipt(
        run_id="run-1",
        row=ROW,
        plan_digest=PLAN,
        manifest_sha256="02" * 32,
        adapters={"protected": "03" * 32},
        series={"protected": "04" * 32},
        runner_head="05" * 32,
        pod_head="06" * 32,
        delegation=delegation(world)[0],
        bundle_sha256="07" * 32,
        challenge=None,
        privates=[RUN_KEY],
    )
    return made, (RUN_KEY,)


def rotation(_: World) -> Made:
    return rotation_statement(OPERATOR, OTHER, at=NOW), (OPERATOR, OTHER)


def revocation(_: World) -> Made:
    return revocation_statement(raw(OPERATOR), OPERATOR, reason="lost", at=NOW), (OPERATOR,)


KINDS: list[Callable[[World], Made]] = [delegation, release, zeroization, run, rotation, revocation]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_reads_every_receipt_with_securesystemslib_alone(
    world: World, kind: Callable[[World], Made]
) -> None:
    made, signers = kind(world)
    keys = [SSlibKey.from_crypto(signer.public_key(), keyid=name(signer)) for signer in signers]
    envelope = Envelope.from_dict(copy.deepcopy(made))
    assert set(envelope.verify(keys, threshold=len(keys))) == {name(signer) for signer in signers}
    assert (envelope.payload_type, set(made)) == (
        "application/vnd.in-toto+json",
        {"payload", "payloadType", "signatures"},
    )
    payload = json.loads(base64.b64decode(made["payload"], validate=True))
    assert set(payload) == {"_type", "subject", "predicateType", "predicate"}
    assert payload["_type"] == "https://in-toto.io/Statement/v1"
    assert payload["predicateType"] == f"urn:glasshouse:predicate:{kind.__name__}:1"
    assert payload["subject"]
    for subject in payload["subject"]:
        assert set(subject) == {"name", "digest"}
        assert re.fullmatch("[0-9a-f]{64}", subject["digest"]["sha256"])
    assert isinstance(payload["predicate"], dict)
    stranger = SSlibKey.from_crypto(Ed25519PrivateKey.generate().public_key(), keyid=name(signers[0]))
    with pytest.raises(VerificationError):
        Envelope.from_dict(copy.deepcopy(made)).verify([stranger], threshold=1)


def test_a_stranger_reads_what_a_run_receipt_covers(world: World) -> None:
    made, _ = run(world)
    payload = json.loads(base64.b64decode(made["payload"]))
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in payload["subject"]}
    assert subjects["row"] == hashlib.sha256(rfc8785.dumps(ROW)).hexdigest()
    assert subjects["adapter-protected"] == "03" * 32


def test_a_stranger_reads_the_evidence_with_joserfc_alone(world: World) -> None:
    token = world.token()
    opened = jwt.decode(token, OKPKey.import_key(pem(world.attester)), algorithms=["Ed25519"])
    assert opened.header == {"alg": "Ed25519", "typ": "eat+jwt", "kid": name(world.attester)}
    claims = opened.claims
    # Forms of RFC 9711, section 4, as JSON has them.
    assert 8 <= len(claims["eat_nonce"]) <= 88
    assert "ueid" not in claims  # permanent and globally unique, or absent (section 4.2.1)
    assert re.fullmatch("[0-9a-f]{32}", claims["jti"])
    assert base64.urlsafe_b64decode(claims["hwmodel"] + "==") == b"AMD EPYC"
    assert (claims["swname"], claims["swversion"]) == ("glasshouse-worker", ["0.1.0"])
    assert claims["dbgstat"] == "disabled"
    assert claims["eat_profile"].startswith("urn:")
    assert isinstance(claims["iat"], int)
    assert claims["iat"] < claims["exp"]
    ((content_format, body),) = claims["measurements"]
    assert content_format == 50  # application/json
    assert json.loads(body)["bundle"] == world.measurements.bundle
    assert set(claims["submods"]) == {"process", "cpu", "gpu0"}
    jwk = claims["cnf"]["jwk"]  # RFC 7800
    assert (jwk["kty"], jwk["crv"]) == ("OKP", "X25519")
    assert base64.urlsafe_b64decode(jwk["x"] + "==") == world.cnf_public
    assert claims["not_a_hardware_tee_claim"] is True
    with pytest.raises(BadSignatureError):
        jwt.decode(token, OKPKey.import_key(pem(OTHER)), algorithms=["Ed25519"])


REPORT = """
import sys
ours = [module for module in sys.modules if module.partition(".")[0] in ("engine", "glasshouse_tui")]
print(json.dumps({"type": statement["predicateType"], "run": claims["run_id"], "ours": ours}))
"""


def test_the_readme_code_reads_a_receipt_and_evidence(world: World, tmp_path: Path) -> None:
    section = README.read_text().partition("## Receipts and evidence without this code")[2]
    snippet = section.partition("```python\n")[2].partition("```")[0]
    made, (signer,) = release(world)
    (tmp_path / "receipt.json").write_text(json.dumps(made))
    (tmp_path / "signer.pem").write_bytes(pem(signer))
    (tmp_path / "evidence.jwt").write_text(world.token() + "\n")
    (tmp_path / "attester.pem").write_bytes(pem(world.attester))
    command = [sys.executable, "-I", "-c", snippet + REPORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"type": "urn:glasshouse:predicate:release:1", "run": "run-1", "ours": []}
    (tmp_path / "signer.pem").write_bytes(pem(OTHER))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "VerificationError" in done.stderr


# The second half: made by the libraries alone, read by our code.


def read(kind: str, envelope: dict[str, Any], publics: tuple[bytes, ...]) -> Any:
    from engine.attestation import receipts, revocation, zeroization

    if kind == "delegation":
        return receipts.check_delegation(envelope, publics[0], run_id="run-1", plan_digest=PLAN, at=NOW)
    if kind == "release":
        return receipts.read_release(envelope, publics[0], run_id="run-1")
    if kind == "zeroization":
        digests = {"manifest_sha256": proof().manifest_sha256, "nonce_sha256": proof().nonce_sha256}
        return zeroization.read_zeroization(envelope, publics, run_id="run-1", **digests)
    if kind == "run":
        return receipts.read_run_receipt(envelope, publics, run_id="run-1", row=ROW)
    return revocation.read_rotation(envelope) if kind == "rotation" else revocation.read_revocation(envelope)


@pytest.mark.parametrize("kind", KINDS)
def test_an_envelope_made_by_securesystemslib_alone_is_accepted(world: World, kind: Callable[[World], Made]) -> None:
    ours, signers = kind(world)
    statement = json.loads(base64.b64decode(ours["payload"]))
    theirs = Envelope(json.dumps(statement, indent=1).encode(), "application/vnd.in-toto+json", {})
    for signer in signers:
        theirs.sign(CryptoSigner(signer, SSlibKey.from_crypto(signer.public_key(), keyid=name(signer))))
    publics = tuple(raw(signer) for signer in signers)
    made = theirs.to_dict()
    assert made["payload"] != ours["payload"]
    assert read(kind.__name__, made, publics) == read(kind.__name__, ours, publics)


def test_evidence_made_by_joserfc_alone_is_accepted(world: World) -> None:
    from engine.attestation.evidence import parse_evidence

    ours = world.token()
    claims: Mapping[str, Any] = json.loads(base64.urlsafe_b64decode(ours.split(".")[1] + "=="))
    header = {"kid": name(world.attester), "typ": "eat+jwt", "alg": "Ed25519"}
    key = OKPKey.import_key(world.attester)
    theirs = jws.serialize_compact(header, rfc8785.dumps(dict(claims)), key, algorithms=["Ed25519"])
    assert parse_evidence(theirs, world.attester_public) == parse_evidence(ours, world.attester_public)
    assert world.appraise(theirs).accepted
