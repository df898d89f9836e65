"""Model signatures over any statement, made without the package that signs folders."""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from securesystemslib.dsse import Envelope

from engine.records.adapters.signing import folder_certificate, operator_certificate
from engine.sealing.operator_keys import OperatorKeys
from engine.wire import sha256_hex

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def statement(names: list[str], **serialization: Any) -> dict[str, Any]:
    """The statement about files that all have the content `x`."""
    digest = sha256_hex(b"x")
    together = sha256_hex(bytes.fromhex(digest) * len(names))
    described = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "adapter", "digest": {"sha256": together}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {**described, **serialization},
            "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name in names],
        },
    }


def signed_over(keys: OperatorKeys, payload: dict[str, Any] | bytes) -> bytes:
    """A bundle with a valid signature by the operator over any payload."""
    key, root = ec.generate_private_key(ec.SECP256R1()), operator_certificate(keys)
    leaf = folder_certificate(key.public_key(), keys.signing, root, "a1b2c3d4e5f6")
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signature = key.sign(Envelope(text, PAYLOAD_TYPE, {}).pae(), ec.ECDSA(SHA256()))
    chain = [{"rawBytes": _base64(one.public_bytes(Encoding.DER))} for one in (leaf, root)]
    envelope = {"payload": _base64(text), "payloadType": PAYLOAD_TYPE, "signatures": [{"sig": _base64(signature)}]}
    document = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"x509CertificateChain": {"certificates": chain}, "tlogEntries": []},
        "dsseEnvelope": envelope,
    }
    return json.dumps(document).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
