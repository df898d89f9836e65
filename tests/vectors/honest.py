"""An honest run with fixed keys and times, from which the vectors are derived.

Everything here follows from fixed seeds, except the random values of the libraries (content keys, nonces of streams,
HPKE ephemeral keys): the files with those are in `base/`, made once.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from engine.attestation.challenge import Challenge
from engine.attestation.claims import Claims, Observed, make_claims
from engine.attestation.evidence import sign_evidence
from engine.attestation.measurement import Measurements
from engine.attestation.policy import CONTROLS, Policy, default_policy, policy_digest
from engine.attestation.receipts import Release
from engine.attestation.verifier import AttestationResult, Expectations
from engine.attestation.wipe_proof import MIB, PAYLOAD, ROLES, TARGETS, Expected, searched_after
from engine.attestation.zeroization import METHODS, Area, Device, ProcessEnd, Scan, Zeroization
from engine.sealing.adapter import AdapterBinding
from engine.sealing.manifest import Manifest, parse_manifest
from engine.sealing.pem import key_id
from engine.wire import sha256_hex

VECTORS: Final = Path(__file__).parent
BASE: Final = VECTORS / "base"
RUN: Final = "run-1"
NOW: Final = 1_790_000_000
BOOT: Final = "boot-1"
SECONDS: Final = 5_000
TIME: Final = "2026-05-17T12:00:00.000Z"
KEYS: Final = (
    "content_key",
    "content_key_half",
    "release_key",
    "release_key_half",
    "adapter_key",
    "adapter_key_half",
)
ADAPTER_SIZE: Final = 8192
CLASSES: Final = (*KEYS, "canary_row", "weights", "adapter", "moments")


def seed(name: str) -> bytes:
    """32 bytes derived from a name."""
    return hashlib.sha256(f"glasshouse vectors: {name}".encode()).digest()


def signing(name: str) -> Ed25519PrivateKey:
    """The signing key of a role: operator, run, attester, stranger."""
    return Ed25519PrivateKey.from_private_bytes(seed(f"signing {name}"))


def receiving(name: str) -> X25519PrivateKey:
    """The receiving key of a role: cnf, recipient, stranger."""
    return X25519PrivateKey.from_private_bytes(seed(f"receiving {name}"))


def public(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    """The raw public half."""
    return key.public_key().public_bytes_raw()


def digest(name: str) -> str:
    """A SHA-256 in place of the digest of something that no vector contains."""
    return seed(f"digest {name}").hex()


def plain(name: str, size: int) -> bytes:
    """The content of a payload file."""
    return b"".join(seed(f"{name} {n}") for n in range(size // 32 + 1))[:size]


def manifest(package: str = "package") -> Manifest:
    """The manifest of a package in `base/`."""
    return parse_manifest((BASE / package / "manifest.json").read_bytes())


def measurements() -> Measurements:
    return Measurements(bundle=digest("bundle"), lock=digest("lock"), environment=digest("environment"))


def challenge(**changes: Any) -> Challenge:
    """The runner's challenge of the honest run."""
    made = Challenge(
        run_id=RUN,
        nonce=base64.b64encode(seed("nonce")).decode(),
        plan_digest=digest("plan"),
        manifest_digest=sha256_hex((BASE / "package" / "manifest.json").read_bytes()),
        policy_digest=policy_digest(default_policy()),
        challenge="a buyer's text",
        runner_head=digest("runner head"),
        recipient_public=base64.b64encode(public(receiving("recipient"))).decode(),
        bundle=digest("bundle"),
    )
    return msgspec.structs.replace(made, **changes)


def expectations(**changes: Any) -> Expectations:
    """The reference values of the honest run."""
    sent = challenge()
    made = Expectations(
        run_id=RUN,
        attester_public=public(signing("attester")),
        measurements=measurements(),
        plan_digest=sent.plan_digest,
        manifest_digest=sent.manifest_digest,
        challenge=sent.challenge,
        pod_id="pod-1",
        ssh_host_key=digest("host key"),
        runner_head=sent.runner_head,
        gpu_uuid="GPU-1",
    )
    return msgspec.structs.replace(made, **changes)


def claims(answered: Challenge | None = None, **arguments: Any) -> Claims:
    """Honest claims; `arguments` replace those of `make_claims`, so that the nonce object covers them."""
    honest: dict[str, Any] = {
        "attester_public": public(signing("attester")),
        "cnf": public(receiving("cnf")),
        "measurements": measurements(),
        "enforcement": {name: Observed("enforced", "seen") for name in CONTROLS},
        "pod_head": digest("pod head"),
        "pod_id": "pod-1",
        "ssh_host_key": digest("host key"),
        "gpu_uuid": "GPU-1",
        "hwmodel": "AMD EPYC",
        "swversion": "0.1.0",
        "submods": {"process": {"pid": 7}, "cpu": {"model": "AMD EPYC"}, "gpu0": {"uuid": "GPU-1"}},
        "now": NOW,
    }
    made = make_claims(answered or challenge(), **{**honest, **arguments})
    return msgspec.structs.replace(made, jti=seed("jti")[:16].hex())


def token(made: Claims | None = None, *, signer: str = "attester", **edits: Any) -> str:
    """A signed token; `edits` change claims after the nonce object was computed."""
    return sign_evidence(msgspec.structs.replace(made or claims(), **edits), signing(signer))


def policy(**changes: Any) -> Policy:
    return msgspec.structs.replace(default_policy(), **changes)


def ledger(nonce: bytes = seed("nonce"), **changes: Any) -> dict[str, Any]:
    """The Verifier's record with one nonce in it."""
    issued = {
        "nonce": base64.b64encode(nonce).decode(),
        "run_id": RUN,
        "boot": BOOT,
        "at": SECONDS - 1,
        "used": False,
    }
    return {"version": 1, "nonces": [{**issued, **changes}]}


def result(**changes: Any) -> AttestationResult:
    """An accepted result of the honest run."""
    made = AttestationResult(
        result_id=seed("result")[:16].hex(),
        run_id=RUN,
        issued=NOW,
        status="warning",
        tier="software",
        verifier_build="glasshouse 0.1.0",
        policy_id=default_policy().id,
        policy_sha256=digest("policy"),
        evidence_sha256=digest("evidence"),
        manifest_sha256=challenge().manifest_digest,
        nonce=digest("nonce object"),
        trust_vector={"hardware": 0, "executables": 32},
        checks=(),
        cnf=public(receiving("cnf")).hex(),
    )
    return msgspec.structs.replace(made, **changes)


def release(**changes: Any) -> Release:
    """The release that was made on that result."""
    made = Release(
        run_id=RUN,
        result_id=result().result_id,
        result_sha256=digest("result"),
        evidence_sha256=result().evidence_sha256,
        policy_sha256=result().policy_sha256,
        manifest_sha256=result().manifest_sha256,
        cnf_public=public(receiving("cnf")).hex(),
        ciphertext_sha256=sha256_hex((BASE / "release.bin").read_bytes()),
        runner_head=digest("runner head"),
        pod_head=digest("pod head"),
        released=TIME,
    )
    return msgspec.structs.replace(made, **changes)


def binding(**changes: Any) -> AdapterBinding:
    """The binding of the run's sealed adapter."""
    made = AdapterBinding(RUN, "protected", challenge().manifest_digest, sha256_hex(seed("nonce")))
    return msgspec.structs.replace(made, **changes)


def scan(hits: dict[str, int], **changes: Any) -> Scan:
    """A scan of a whole process."""
    found = sum(hits.values())
    made = Scan(
        state="read",
        bytes_read=16 * MIB,
        regions_read=90,
        hits=hits,
        where={"heap": found} if found else {},
        skipped={"clean_file": Area(3, 4096), "guard": Area(1, 4096), "vvar": Area(1, 16384)},
    )
    return msgspec.structs.replace(made, **changes)


def payload_scan(hits: dict[str, int], **changes: Any) -> Scan:
    """A scan of the payload's and the adapter's memfds."""
    found = sum(hits.values())
    made = Scan(
        state="read",
        bytes_read=2 * ADAPTER_SIZE,
        regions_read=0,
        descriptors_read=3,
        hits=hits,
        where={"descriptor": found} if found else {},
    )
    return msgspec.structs.replace(made, **changes)


def expected_wipe(**changes: Any) -> Expected:
    """What the honest run's receipt must agree with."""
    made = Expected(
        policy=default_policy(),
        adapter_sha256=digest("adapter"),
        adapter_size=ADAPTER_SIZE,
        secret_weights=True,
        gpu=False,
        launched=TIME,
        logged=TIME,
        pod_head=digest("pod head"),
    )
    return msgspec.structs.replace(made, **changes)


def before() -> dict[str, Scan]:
    """Scans that found every secret where it was."""
    found = {
        "keyproc open": scan(dict.fromkeys(KEYS[:4], 2)),
        "keyproc seal": scan(dict.fromkeys(KEYS[4:], 2)),
        "trainer": scan({"canary_row": 4, "weights": 0, "adapter": 8, "moments": 16}),
        PAYLOAD: payload_scan({"canary_row": 1, "weights": 8, "adapter": 8, "moments": 0}),
    }
    none = scan(dict.fromkeys(("canary_row", "weights", "adapter", "moments"), 0))
    return {**found, "supervisor": none, "scanner": none}


def after() -> dict[str, Scan]:
    """Scans of the same targets that found nothing."""
    nothing = {target: dict.fromkeys(sorted(searched_after(target, expected_wipe())), 0) for target in TARGETS}
    return {target: (payload_scan if target == PAYLOAD else scan)(hits) for target, hits in nothing.items()}


def zeroization(**changes: Any) -> Zeroization:
    """A complete proof of zeroization."""
    made = Zeroization(
        run_id=RUN,
        segment="protected",
        manifest_sha256=challenge().manifest_digest,
        nonce_sha256=sha256_hex(seed("nonce")),
        adapter_sha256=digest("adapter"),
        methods=list(METHODS),
        before=before(),
        after=after(),
        processes=[ProcessEnd(role=role, pid=10 + n, start_time=99, gone=True) for n, role in enumerate(ROLES)],
        scratch_empty=True,
        deleted_files_held=0,
        device=Device(present=False),
        pod_head=digest("pod head"),
        began=TIME,
        ended=TIME,
    )
    return msgspec.structs.replace(made, **changes)


def name_of(key: Ed25519PrivateKey) -> str:
    """A key's id."""
    return key_id(public(key))
