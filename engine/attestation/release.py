"""Release of the keys: one per accepted result, with a signed receipt before it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.ear import result_digest, sign_result
from engine.attestation.reasons import refusal
from engine.attestation.receipts import Release, release_receipt
from engine.attestation.verifier import AttestationResult
from engine.sealing.release import release_info, seal_release
from engine.wire import sha256_hex, utc_now


class PreparedRelease(msgspec.Struct, frozen=True, kw_only=True):
    """A release that is ready to send: store `receipt` and `ciphertext` first.

    After a reconnect exactly these bytes are sent again; no second release is made.
    """

    ciphertext: bytes
    receipt: dict[str, Any]
    body: Release


def prepare_release(
    result: AttestationResult | None,
    keys: bytearray | memoryview,
    *,
    run_id: str,
    run_key: Ed25519PrivateKey,
    runner_head: str,
    pod_head: str,
    previous: Sequence[Release] = (),
) -> PreparedRelease:
    """Encrypt `keys` to the attested key of an accepted result, and sign the receipt of the release.

    The run's key is also the Verifier's, so the receipt names the EAR token that this key signs for the result.
    `previous` are the releases of this run so far. Raises `RefusedError`: `release_before_result` (no
    accepted result), `release_other_result` (a result of another run), `release_repeated`, `cnf_invalid`.
    """
    if result is None or not result.accepted or result.cnf is None:
        raise refusal("release_before_result")
    if result.run_id != run_id:
        raise refusal("release_other_result")
    if any(release.result_id == result.result_id for release in previous):
        raise refusal("release_repeated")
    info = release_info(
        evidence_sha256=result.evidence_sha256,
        policy_sha256=result.policy_sha256,
        manifest_sha256=result.manifest_sha256,
        run_id=run_id,
    )
    ciphertext = seal_release(keys, bytes.fromhex(result.cnf), info)
    body = Release(
        run_id=run_id,
        result_id=result.result_id,
        result_sha256=result_digest(sign_result(result, run_key)),
        evidence_sha256=result.evidence_sha256,
        policy_sha256=result.policy_sha256,
        manifest_sha256=result.manifest_sha256,
        cnf_public=result.cnf,
        ciphertext_sha256=sha256_hex(ciphertext),
        runner_head=runner_head,
        pod_head=pod_head,
        released=utc_now(),
    )
    return PreparedRelease(ciphertext=ciphertext, receipt=release_receipt(body, run_key), body=body)
