"""`model.sig`: what the published tool writes and accepts, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engine.errors import RefusedError
from engine.records.adapters.signature import SIGNATURE, read_signature
from engine.records.adapters.signing import OPERATOR_CERTIFICATE, operator_certificate, sign_folder
from engine.sealing.operator_keys import OperatorKeys
from engine.wire import sha256_hex
from tests.needs import SIGNING_EXTRA
from tests.vectors.model_signature import signed_over, statement

verifying: Any = pytest.importorskip("model_signing.verifying", reason=SIGNING_EXTRA)

KEYS = OperatorKeys.generate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file and a subfolder, signed."""
    place = tmp_path_factory.mktemp("signed") / "adapter"
    (place / "base").mkdir(parents=True)
    (place / "a.json").write_text("{}")
    (place / "base" / "b.txt").write_text("b")
    sign_folder(place, KEYS, run_id="a1b2c3d4e5f6")
    return place


@pytest.fixture(scope="module")
def bundle(folder: Path) -> dict[str, Any]:
    """The signature's JSON."""
    parsed: dict[str, Any] = json.loads((folder / SIGNATURE).read_bytes())
    return parsed


def published_check(folder: Path, certificate: Path) -> None:
    """What `model_signing verify certificate` does."""
    verifying.Config().use_certificate_verifier(certificate_chain=[certificate]).verify(folder, folder / SIGNATURE)


def test_the_published_tool_accepts_it_under_the_operators_certificate_alone(folder: Path, tmp_path: Path) -> None:
    published_check(folder, folder / OPERATOR_CERTIFICATE)
    other = tmp_path / "other.pem"
    from cryptography.hazmat.primitives.serialization import Encoding

    other.write_bytes(operator_certificate(OperatorKeys.generate()).public_bytes(Encoding.PEM))
    with pytest.raises(Exception, match="certificate"):
        published_check(folder, other)


def test_it_names_the_operator_the_time_and_every_file(folder: Path) -> None:
    signed = read_signature((folder / SIGNATURE).read_bytes())
    assert signed.operator == KEYS.signing_public
    assert abs((datetime.now(UTC) - signed.issued).total_seconds()) < 3600
    names = ("a.json", "base/b.txt", OPERATOR_CERTIFICATE)
    assert signed.files == {name: sha256_hex((folder / name).read_bytes()) for name in names}
    assert {(folder / name).stat().st_mode & 0o777 for name in (SIGNATURE, OPERATOR_CERTIFICATE)} == {0o600}


def test_the_operators_certificate_is_the_same_each_time() -> None:
    assert operator_certificate(KEYS) == operator_certificate(KEYS)


Bundle = dict[str, Any]


def envelope(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = bundle["dsseEnvelope"]
    return found


def with_payload(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> None:
    payload = json.loads(base64.b64decode(envelope(bundle)["payload"]))
    change(payload)
    envelope(bundle)["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()


def other_file(bundle: Bundle) -> None:
    with_payload(bundle, lambda payload: payload["predicate"]["resources"][0].update(digest="0" * 64))


def other_operator(bundle: Bundle) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    other = operator_certificate(OperatorKeys.generate()).public_bytes(Encoding.DER)
    certificates(bundle)[1]["rawBytes"] = base64.b64encode(other).decode()


def certificates(bundle: Bundle) -> list[dict[str, str]]:
    found: list[dict[str, str]] = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"]
    return found


def flipped(bundle: Bundle) -> None:
    raw = bytearray(base64.b64decode(certificates(bundle)[0]["rawBytes"]))
    raw[-1] ^= 1
    certificates(bundle)[0]["rawBytes"] = base64.b64encode(raw).decode()


@pytest.mark.parametrize("change", [other_file, other_operator, flipped])
def test_a_changed_signature_is_invalid(bundle: Bundle, change: Callable[[Bundle], None]) -> None:
    copy = json.loads(json.dumps(bundle))
    change(copy)
    assert refused(json.dumps(copy).encode()) == "model_signature_invalid"


def refused(data: bytes) -> str:
    with pytest.raises(RefusedError) as caught:
        read_signature(data)
    return caught.value.code


def no_root(bundle: Bundle) -> None:
    del certificates(bundle)[1]


def the_operator_signs(bundle: Bundle) -> None:
    certificates(bundle)[0] = certificates(bundle)[1]


def the_folder_key_certifies(bundle: Bundle) -> None:
    certificates(bundle)[1] = certificates(bundle)[0]


def public_key(bundle: Bundle) -> None:
    bundle["verificationMaterial"] = {"publicKey": {"hint": "0" * 64}}


def two_signatures(bundle: Bundle) -> None:
    envelope(bundle)["signatures"] *= 2


def other_media_type(bundle: Bundle) -> None:
    bundle["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.4+json"


def other_payload_type(bundle: Bundle) -> None:
    envelope(bundle)["payloadType"] = "text/plain"


def no_base64(bundle: Bundle) -> None:
    envelope(bundle)["payload"] = "*"


def no_certificate(bundle: Bundle) -> None:
    certificates(bundle)[0]["rawBytes"] = "AAAA"


@pytest.mark.parametrize(
    "change",
    [
        no_root,
        the_operator_signs,
        the_folder_key_certifies,
        public_key,
        two_signatures,
        other_media_type,
        other_payload_type,
        no_base64,
        no_certificate,
    ],
)
def test_another_form_is_malformed(bundle: Bundle, change: Callable[[Bundle], None]) -> None:
    copy = json.loads(json.dumps(bundle))
    change(copy)
    assert refused(json.dumps(copy).encode()) == "model_signature_malformed"


@pytest.mark.parametrize("data", [b"", b"null", b"[" * 100_000, b"\xff", b'{"a": 1, "a": 2}', b" " * 5_000_000])
def test_what_is_no_bundle_is_malformed(data: bytes) -> None:
    assert refused(data) == "model_signature_malformed"


def test_a_statement_with_plain_names_is_read() -> None:
    assert set(read_signature(signed_over(KEYS, statement(["a.json", "base/b"]))).files) == {"a.json", "base/b"}


@pytest.mark.parametrize(
    "payload",
    [
        statement(["../a"]),
        statement(["/etc/passwd"]),
        statement(["a", "a"]),
        statement(["a\x1b[2J"]),
        statement(["a/b/c/d/e"]),
        statement(["a"], allow_symlinks=True),
        statement(["a"], method="shards"),
        statement(["a"]) | {"predicateType": "https://slsa.dev/provenance/v1"},
        statement(["a"]) | {"_type": "https://in-toto.io/Statement/v0.1"},
        statement(["a"]) | {"subject": [{"name": "adapter", "digest": {"sha256": "0" * 64}}]},
    ],
)
def test_a_statement_of_another_form_is_malformed_however_well_signed(payload: dict[str, Any]) -> None:
    assert refused(signed_over(KEYS, payload)) == "model_signature_malformed"
