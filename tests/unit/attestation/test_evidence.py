"""The token: round trip, interoperation, and refusal of everything that differs from it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OctKey, OKPKey

from engine.attestation.claims import Observed, bound_nonce
from engine.attestation.evidence import MAX_EVIDENCE_BYTES, parse_evidence, sign_evidence
from engine.errors import RefusedError

if TYPE_CHECKING:
    from tests.unit.attestation.conftest import World

Resign = Callable[[dict[str, Any], dict[str, Any]], str]


def refusal(token: str, public: bytes) -> str:
    with pytest.raises(RefusedError) as caught:
        parse_evidence(token, public)
    return caught.value.code


def part(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_claims_survive_the_round_trip(world: World) -> None:
    claims = world.claims()
    assert parse_evidence(world.token(claims), world.attester_public) == claims


def test_joserfc_alone_reads_the_registered_claims(world: World) -> None:
    claims = world.claims()
    key = OKPKey.import_key(world.attester.public_key())
    token = jwt.decode(world.token(claims), key, algorithms=["Ed25519"])
    assert token.header["typ"] == "eat+jwt"
    read = token.claims
    assert read["eat_nonce"] == bound_nonce(claims)
    assert read["cnf"] == {"jwk": {"kty": "OKP", "crv": "X25519", "x": part(world.cnf_public)}}
    assert base64.urlsafe_b64decode(read["hwmodel"] + "==") == b"AMD EPYC"
    assert "ueid" not in read  # RFC 9711, section 4.2.1: permanent and globally unique, or absent
    assert read["swversion"] == ["0.1.0"]
    assert json.loads(read["measurements"][0][1]) == msgspec.to_builtins(world.measurements)
    assert read["dbgstat"] == "disabled"
    assert read["not_a_hardware_tee_claim"] is True


def test_every_token_has_its_own_id(world: World) -> None:
    one, two = world.claims(), world.claims()
    assert one.jti != two.jti


def test_alg_none_is_refused(world: World) -> None:
    payload = world.token().split(".")[1]
    for alg in ("none", "None", "NONE", "", None, ["Ed25519"], 5):
        header = part(json.dumps({"alg": alg, "typ": "eat+jwt", "kid": "00" * 32}).encode())
        for signature in ("", "AAAA"):
            assert refusal(f"{header}.{payload}.{signature}", world.attester_public) == "evidence_alg"


@pytest.mark.parametrize("alg", ["HS256", "HS512"])
def test_a_mac_keyed_with_the_public_key_is_refused(world: World, alg: str) -> None:
    claims = json.loads(base64.urlsafe_b64decode(world.token().split(".")[1] + "=="))
    key = OctKey.import_key(world.attester_public)
    confused = jwt.encode({"alg": alg, "typ": "eat+jwt", "kid": "00" * 32}, claims, key, algorithms=[alg])
    assert refusal(confused, world.attester_public) == "evidence_alg"


def test_the_older_name_of_the_algorithm_is_refused(world: World) -> None:
    header = part(json.dumps({"alg": "EdDSA", "typ": "eat+jwt", "kid": "00" * 32}).encode())
    _, payload, signature = world.token().split(".")
    assert refusal(f"{header}.{payload}.{signature}", world.attester_public) == "evidence_alg"


def test_another_signer_is_refused(world: World) -> None:
    other = Ed25519PrivateKey.generate()
    forged = sign_evidence(
        msgspec.structs.replace(world.claims(), attester_key=other.public_key().public_bytes_raw()), other
    )
    assert refusal(forged, world.attester_public) == "attester_key_unknown"


def test_claims_that_name_another_signer_are_refused(world: World, resigned: Resign) -> None:
    token = resigned({}, {"attester_key": part(bytes(32))})
    assert refusal(token, world.attester_public) == "attester_key_unknown"


def test_claims_that_name_another_key_are_not_signed(world: World) -> None:
    with pytest.raises(RefusedError) as caught:
        sign_evidence(world.claims(), Ed25519PrivateKey.generate())
    assert caught.value.code == "attester_key_unknown"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 63), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_signature_is_refused(world: World, position: int, bit: int) -> None:
    header, payload, signature = world.one_token.split(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[position] ^= 1 << bit
    assert refusal(f"{header}.{payload}.{part(bytes(raw))}", world.attester_public) == "signature_invalid"


def test_a_token_with_other_claims_under_the_same_signature_is_refused(world: World) -> None:
    (header, _, signature), (_, payload, _) = world.token().split("."), world.token().split(".")
    assert refusal(f"{header}.{payload}.{signature}", world.attester_public) == "signature_invalid"


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "JWT"},
        {"crit": ["exp"]},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}},
        {"x5c": ["AAAA"]},
        {"cty": "json"},
    ],
)
def test_a_header_with_additional_or_other_fields_is_refused(world: World, header: dict[str, Any]) -> None:
    first, payload, signature = world.token().split(".")
    full = {**json.loads(base64.urlsafe_b64decode(first + "==")), **header}
    token = f"{part(json.dumps(full).encode())}.{payload}.{signature}"
    assert refusal(token, world.attester_public) == "evidence_malformed"


SCHEMA: list[dict[str, Any]] = [
    {"unknown": 1},
    {"iat": 1.5},
    {"iat": True},
    {"iat": -1},
    {"iat": 2**50},
    {"exp": 1},
    {"jti": "x" * 600},
    {"ueid": "AQ"},
    {"ueid": base64.urlsafe_b64encode(bytes([1]) + bytes(range(16))).rstrip(b"=").decode()},  # random, so not permanent
    {"hwmodel": "gICA"},
    {"swversion": []},
    {"swversion": ["1", "2"]},
    {"dbgstat": "maybe"},
    {"measurements": []},
    {"measurements": [[51, "{}"]]},
    {"measurements": [[50, "{}"]]},
    {"measurements": [[50, "not json"]]},
    {"measurements": [[50, '{"bundle":"x","lock":"y","environment":"z"}']]},
    {"submods": {"cpu": {"deep": {"er": 1}}}},
    {"submods": {f"s{index}": {} for index in range(65)}},
    {"cnf": {"jwk": {"kty": "EC", "crv": "X25519", "x": "AAAA"}}},
    {"cnf": {"jwk": {"kty": "OKP", "crv": "X25519", "x": "AAAA"}}},
    {"cnf": {"jwk": {"kty": "OKP", "crv": "X25519", "x": "AAAA", "d": "AAAA"}}},
    {"cnf": {"kid": "x"}},
    {"run_id": "../run"},
    {"nonce": part(bytes(16))},
    {"nonce": part(bytes(32)) + "="},
    {"plan_digest": "ABC"},
    {"eat_nonce": "short"},
    {"ssh_host_key": ""},
    {"challenge": "x" * 513},
    {"enforcement": {"seccomp": "enforced"}},
    {"enforcement": {"seccomp": {"value": "enforced", "more": 1}}},
    {"enforcement": {f"c{index}": {"value": "x"} for index in range(65)}},
    {"heads": {"runner": "00" * 32}},
    {"not_a_hardware_tee_claim": "yes"},
]


@pytest.mark.parametrize("change", SCHEMA, ids=[next(iter(change)) for change in SCHEMA])
def test_signed_claims_that_do_not_fit_the_schema_are_refused(
    world: World, resigned: Resign, change: dict[str, Any]
) -> None:
    assert refusal(resigned({}, change), world.attester_public) == "evidence_claims"


def signed_bytes(world: World, payload: bytes) -> str:
    from joserfc import jws

    from engine.sealing.pem import key_id

    header = {"alg": "Ed25519", "typ": "eat+jwt", "kid": key_id(world.attester_public)}
    key = OKPKey.import_key(world.attester)
    return jws.serialize_compact(header, payload, key, algorithms=["Ed25519"])


def test_signed_bytes_that_are_not_the_canonical_claims_are_refused(world: World) -> None:
    honest = base64.urlsafe_b64decode((body := world.token().split(".")[1]) + "=" * (-len(body) % 4))
    doubled = honest[:-1] + b',"tier":"snp"}'
    spaced = json.dumps(json.loads(honest)).encode()
    for payload in (doubled, spaced, honest + b" ", b"", b"[]", b"null", b"{}", b"\xff", b"[" * 20_000):
        assert refusal(signed_bytes(world, payload), world.attester_public) == "evidence_claims"


def test_evidence_beyond_the_limit_is_neither_signed_nor_read(world: World) -> None:
    submods = {f"s{index}": {f"t{part}": "x" * 250 for part in range(6)} for index in range(40)}
    with pytest.raises(RefusedError) as caught:
        world.token(submods=submods)
    assert caught.value.code == "evidence_too_large"
    assert refusal("x" * (MAX_EVIDENCE_BYTES + 1), world.attester_public) == "evidence_too_large"


@pytest.mark.parametrize(
    "edit",
    [{"run_id": ""}, {"cnf": b"short"}, {"iat": 0}, {"submods": {"cpu": {"load": float("nan")}}}, {"jti": "\ud800"}],
)
def test_invalid_claims_are_never_signed(world: World, edit: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as caught:
        world.token(**edit)
    assert caught.value.code == "evidence_claims"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300) | st.binary(max_size=200).map(part))
def test_arbitrary_text_raises_only_typed_errors(world: World, text: str) -> None:
    refusal(text, world.attester_public)
    refusal(f"{text}.{text}.{text}", world.attester_public)
    refusal(".".join([world.one_token.split(".")[0], text, text]), world.attester_public)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=10,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_arbitrary_signed_json_raises_only_typed_errors(world: World, data: st.DataObject) -> None:
    from engine.errors import WireError
    from engine.wire import canonical

    body = world.one_token.split(".")[1]
    honest = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(honest)), JSON, min_size=1, max_size=3))
    try:
        payload = canonical({**honest, **changes})
    except WireError:
        return
    try:
        parse_evidence(signed_bytes(world, payload), world.attester_public)
    except RefusedError as error:
        assert error.code in ("evidence_claims", "attester_key_unknown")


def test_enforcement_is_carried_as_observed(world: World) -> None:
    enforcement = {"landlock_fs": Observed("failed:EPERM", "abi 7"), "seccomp": Observed("enforced")}
    claims = parse_evidence(world.token(enforcement=enforcement), world.attester_public)
    assert claims.enforcement == enforcement
