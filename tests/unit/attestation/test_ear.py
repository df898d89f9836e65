"""The attestation result as an EAR token: what a reader of the draft finds in it, and what our own reader refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import jsonschema
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import OKPKey

from engine import __version__
from engine.attestation.ear import (
    EXTENSION,
    SUBMODULE,
    claims_of,
    parse_result,
    peek_result,
    result_digest,
    sign_result,
)
from engine.attestation.policy import policy_digest
from engine.attestation.tokens import sign_token
from engine.attestation.verifier import AttestationResult, no_evidence
from engine.errors import RefusedError
from engine.wire import canonical

if TYPE_CHECKING:
    from tests.unit.attestation.conftest import World

TIERS: Final = {"none": 0, "affirming": 2, "warning": 32, "contraindicated": 96}

# Written from the CDDL of draft-ietf-rats-ear-04 (`EAR`, `EAR-appraisal`), draft-ietf-rats-ar4si
# (`trustworthiness-vector`, `verifier-id`) and RFC 9711 (`nonce-type`), in their JSON serialization.
_TIER: Final = {"enum": list(TIERS)}
_NONCE: Final = {"type": "string", "minLength": 8, "maxLength": 88}
_CLAIM: Final = {"type": "integer", "minimum": -128, "maximum": 127}
_VECTOR: Final = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": False,
    "properties": dict.fromkeys(
        (
            "instance-identity", "configuration", "executables", "file-system",
            "hardware", "runtime-opaque", "storage-opaque", "sourced-data",
        ),
        _CLAIM,
    ),
}  # fmt: skip
_APPRAISAL: Final = {
    "type": "object",
    "required": ["ear_status"],
    "properties": {
        "eat_profile": {"type": "string"},
        "ear_status": _TIER,
        "ear_trustworthiness_vector": _VECTOR,
        "ear_appraisal_policy_ids": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        "eat_nonce": _NONCE,
    },
    "additionalProperties": {"type": "object"},  # an extension is a map
}
EAR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["eat_profile", "iat", "ear_verifier_id", "submods"],
    "properties": {
        "eat_profile": {"const": "tag:ietf.org,2026:rats/ear#04"},
        "iat": {"type": "integer"},
        "exp": {"type": "integer"},
        "jti": {"type": "string"},  # RFC 7519
        "ear_status": _TIER,
        "ear_verifier_id": {
            "type": "object",
            "required": ["developer", "build"],
            "properties": {"developer": {"type": "string"}, "build": {"type": "string"}},
            "additionalProperties": False,
        },
        "ear_raw_evidence": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
        "eat_nonce": _NONCE,
        "submods": {"type": "object", "minProperties": 1, "additionalProperties": _APPRAISAL},
    },
    "additionalProperties": {"type": "object"},
}


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _read_as_the_draft_says(token: str, key: Ed25519PrivateKey) -> dict[str, Any]:
    """A Relying Party that knows JWT and EAR, and nothing of this project."""
    opened = jwt.decode(token, OKPKey.import_key(key.public_key()), algorithms=["Ed25519"])
    jsonschema.Draft202012Validator(EAR).validate(opened.claims)
    for appraisal in opened.claims["submods"].values():
        worst = max(appraisal["ear_trustworthiness_vector"].values())
        assert TIERS[appraisal["ear_status"]] >= worst or appraisal["ear_status"] == "none"
        assert TIERS[opened.claims["ear_status"]] >= TIERS[appraisal["ear_status"]]
    return opened.claims


def test_a_reader_of_the_draft_reads_an_accepted_result(world: World) -> None:
    claims = world.claims()
    token = sign_result(world.appraise(world.token(claims), now=1_790_000_001.7), world.run_key)
    read = _read_as_the_draft_says(token, world.run_key)
    assert (read["iat"], read["ear_status"]) == (1_790_000_001, "warning")
    assert read["ear_verifier_id"] == {"developer": "glasshouse", "build": f"glasshouse {__version__}"}
    appraisal = read["submods"][SUBMODULE]
    assert appraisal["eat_nonce"] == claims.eat_nonce, "the freshness of the evidence is not visible"
    assert appraisal["ear_appraisal_policy_ids"] == [f"urn:glasshouse:policy:sha256:{policy_digest(world.policy)}"]
    assert set(appraisal["ear_trustworthiness_vector"].values()) == {0, 32}
    ours = appraisal[EXTENSION]
    assert ours["not_a_hardware_tee_claim"] is True
    assert ours["cnf"] == world.cnf_public.hex()
    with pytest.raises(BadSignatureError):
        _read_as_the_draft_says(token, Ed25519PrivateKey.generate())


def test_a_reader_of_the_draft_reads_a_refusal_and_an_absence(world: World) -> None:
    refused = world.appraise(world.token(world.claims(debug=True)))
    read = _read_as_the_draft_says(sign_result(refused, world.run_key), world.run_key)
    appraisal = read["submods"][SUBMODULE]
    assert (read["ear_status"], appraisal["ear_trustworthiness_vector"]["configuration"]) == ("contraindicated", 96)
    assert appraisal[EXTENSION]["cnf"] is None
    unreadable = _read_as_the_draft_says(sign_result(world.appraise("a.b.c"), world.run_key), world.run_key)
    assert "eat_nonce" not in unreadable["submods"][SUBMODULE]
    absent = no_evidence(expected=world.expected, policy=world.policy, now=1.0)
    assert _read_as_the_draft_says(sign_result(absent, world.run_key), world.run_key)["ear_status"] == "none"


@pytest.mark.parametrize("debug", [False, True])
def test_a_result_survives_its_token(world: World, debug: bool) -> None:
    result = world.appraise(world.token(world.claims(debug=debug)))
    token = sign_result(result, world.run_key)
    assert parse_result(token, _public(world.run_key)) == peek_result(token) == result
    assert sign_result(result, world.run_key) == token
    assert len(result_digest(token)) == 64


def _refusal(token: str, public: bytes) -> str:
    with pytest.raises(RefusedError) as caught:
        parse_result(token, public)
    return caught.value.code


def test_another_signer_and_a_changed_token_are_refused(world: World) -> None:
    token = sign_result(world.appraise(world.token()), world.run_key)
    assert _refusal(token, _public(world.attester)) == "result_signature_invalid"
    header, payload, signature = token.split(".")
    for changed in (
        f"{header}.{payload}.{signature[:-4]}AAAA",
        f"{header}.{payload[:-4]}AAAA.{signature}",
        token + "=",
    ):
        assert _refusal(changed, _public(world.run_key)) == "result_signature_invalid"
    # Evidence is a token of the same media type: signed by the same key it would still be no result.
    claims = sign_token(canonical({"eat_profile": "urn:glasshouse:eat:1"}), world.run_key)
    for text in ("", "a", "a.b.c", "é.b.c", claims, "x" * 70_000, f"{header}.{payload}"):
        assert _refusal(text, _public(world.run_key)) == "result_malformed"
        assert peek_result(text) is None


CHANGED: Final[list[dict[str, Any]]] = [
    {"eat_profile": "tag:github.com,2023:veraison/ear"},
    {"iat": 1.5},
    {"iat": 0},
    {"jti": None},
    {"ear_status": "trusted"},
    {"ear_verifier_id": {"developer": "somebody else", "build": "glasshouse 0.1.0"}},
    {"submods": {}},
    {"exp": 1},
    {"ear.status": "warning"},
]
CHANGED_APPRAISAL: Final[list[dict[str, Any]]] = [
    {"eat_profile": "urn:other"},
    {"ear_status": "contraindicated"},
    {"ear_appraisal_policy_ids": []},
    {"ear_appraisal_policy_ids": ["urn:glasshouse:policy:sha256:" + "0" * 63]},
    {"ear_appraisal_policy_ids": ["0" * 64]},
    {"ear_trustworthiness_vector": {"hardware": 33}},
    {"ear_trustworthiness_vector": {"attractiveness": 32}},
    {"eat_nonce": None},
    {EXTENSION: {}},
]


def _claims(world: World) -> dict[str, Any]:
    return claims_of(world.appraise(world.token()))


@pytest.mark.parametrize("change", CHANGED, ids="-".join)
def test_other_claims_are_refused_although_the_verifier_signed_them(world: World, change: dict[str, Any]) -> None:
    token = sign_token(canonical(_claims(world) | change), world.run_key)
    assert _refusal(token, _public(world.run_key)) == "result_malformed"
    assert peek_result(token) is None


@pytest.mark.parametrize("change", CHANGED_APPRAISAL, ids="-".join)
def test_another_appraisal_is_refused_although_the_verifier_signed_it(world: World, change: dict[str, Any]) -> None:
    claims = _claims(world)
    claims["submods"][SUBMODULE] |= change
    assert _refusal(sign_token(canonical(claims), world.run_key), _public(world.run_key)) == "result_malformed"


def test_a_payload_in_another_spelling_is_refused(world: World) -> None:
    spaced = canonical(_claims(world)).replace(b'":', b'": ', 1)
    assert _refusal(sign_token(spaced, world.run_key), _public(world.run_key)) == "result_malformed"


def _replaced(result: AttestationResult, **changes: Any) -> AttestationResult:
    return msgspec.structs.replace(result, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "affirming"},
        {"status": "affirming", "trust_vector": {"executables": 2}},
        {"trust_vector": {"executables": 32, "hardware": 2}},
        {"trust_vector": {"executables": 96}},
        {"status": "affirming", "tier": "snp", "trust_vector": {"executables": 32}},
    ],
)
def test_a_result_that_claims_too_much_is_neither_signed_nor_read(world: World, changes: dict[str, Any]) -> None:
    result = _replaced(world.appraise(world.token()), **changes)
    with pytest.raises(RefusedError) as caught:
        sign_result(result, world.run_key)
    assert caught.value.code == "result_overclaimed"
    token = sign_token(canonical(claims_of(result)), world.run_key)
    assert _refusal(token, _public(world.run_key)) == "result_overclaimed"
