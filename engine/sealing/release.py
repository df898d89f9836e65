"""Key release: the package's keys, encrypted by HPKE (RFC 9180) to the attested key and bound to what was appraised.

Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. The binding is entirely in `info`.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from engine.errors import RefusedError, SealingError
from engine.sealing.manifest import is_digest, is_run_id
from engine.wire import canonical

RELEASE_PROTOCOL: Final = "glasshouse/release/1"
PUBLIC_BYTES: Final = 32
HPKE_OVERHEAD: Final = 48  # encapsulated key and tag

SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def hpke_public(raw: bytes, *, code: str, what: str) -> X25519PublicKey:
    """An X25519 public key from its 32 raw bytes; raises `RefusedError` with `code`."""
    try:
        return X25519PublicKey.from_public_bytes(bytes(raw))
    except ValueError as error:
        raise RefusedError(f"{what} is not an X25519 public key.", "Start the run again.", code=code) from error


def release_info(*, evidence_sha256: str, policy_sha256: str, manifest_sha256: str, run_id: str) -> bytes:
    """The HPKE `info` of a release: canonical JSON of the protocol tag, the three digests and the run id.

    Raises `SealingError` (`release_info_invalid`) for a malformed digest or run id.
    """
    if not (is_run_id(run_id) and all(map(is_digest, (evidence_sha256, policy_sha256, manifest_sha256)))):
        raise SealingError(
            "The release has a malformed SHA-256 digest or run id, so it was not made.", code="release_info_invalid"
        )
    return canonical(
        {
            "protocol": RELEASE_PROTOCOL,
            "evidence_sha256": evidence_sha256,
            "policy_sha256": policy_sha256,
            "manifest_sha256": manifest_sha256,
            "run_id": run_id,
        }
    )


def seal_release(keys: bytearray | memoryview, cnf_public: bytes, info: bytes) -> bytes:
    """`keys` encrypted to the attested key (32 raw bytes); raises `RefusedError` (`cnf_invalid`)."""
    public = hpke_public(cnf_public, code="cnf_invalid", what="The attested key")
    try:
        return SUITE.encrypt(keys, public, info=info)
    except ValueError as error:  # a point of small order has no shared secret
        raise RefusedError(
            "The attested key cannot be used for encryption.", "Start the run again.", code="cnf_invalid"
        ) from error


def open_release(ciphertext: bytes, private_key: X25519PrivateKey, info: bytes) -> bytes:
    """The keys of a release; the caller wipes them. Raises `RefusedError` (`release_wrong_binding`).

    A wrong key, a wrong `info` and a changed ciphertext cannot be told apart.
    """
    try:
        return SUITE.decrypt(ciphertext, private_key, info=info)
    except InvalidTag:
        raise RefusedError(
            "The released keys are not bound to this evidence, policy, package and run.",
            "Start the run again; a release is valid only for the run that it was made for.",
            code="release_wrong_binding",
        ) from None
