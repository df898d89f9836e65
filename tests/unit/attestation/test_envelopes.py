"""DSSE envelopes and in-toto statements: interoperation, and refusal of every form that differs from ours."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from engine.attestation.dsse import countersign, open_envelope, seal_envelope
from engine.attestation.statements import PAYLOAD_TYPE, open_statement, sign, statement, verify
from engine.errors import RefusedError
from engine.sealing.pem import key_id
from engine.wire import canonical

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
KIND = "urn:test:predicate"
SUBJECTS = {"row": "11" * 32, "adapter": "22" * 32}


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def envelope() -> dict[str, Any]:
    return sign(statement(KIND, SUBJECTS, {"value": 1}), KEY)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RefusedError) as caught:
        call()
    return caught.value.code


def test_a_statement_survives_the_round_trip() -> None:
    opened = open_statement(envelope(), raw(KEY), KIND)
    assert opened.predicate == verify(envelope(), raw(KEY), KIND) == {"value": 1}
    assert opened.named == SUBJECTS


def test_securesystemslib_alone_accepts_the_envelope() -> None:
    made = envelope()
    key = SSlibKey.from_crypto(KEY.public_key(), keyid=made["signatures"][0]["keyid"])
    opened = Envelope.from_dict(copy.deepcopy(made))
    assert opened.verify([key], 1)
    assert json.loads(opened.payload)["_type"] == "https://in-toto.io/Statement/v1"
    assert opened.payload_type == "application/vnd.in-toto+json"


def test_an_envelope_made_by_securesystemslib_is_accepted() -> None:
    made = Envelope(canonical(statement(KIND, SUBJECTS, {})), PAYLOAD_TYPE, {})
    made.sign(CryptoSigner(KEY, SSlibKey.from_crypto(KEY.public_key(), keyid=key_id(raw(KEY)))))
    assert verify(made.to_dict(), raw(KEY), KIND) == {}


def test_verifying_does_not_modify_the_envelope() -> None:
    made = envelope()
    before = copy.deepcopy(made)
    verify(made, raw(KEY), KIND)
    assert made == before


def test_two_keys_must_both_have_signed() -> None:
    both = countersign(envelope(), OTHER)
    assert verify(both, (raw(KEY), raw(OTHER)), KIND)
    assert both == sign(statement(KIND, SUBJECTS, {"value": 1}), KEY, OTHER)
    assert refusal(lambda: verify(envelope(), (raw(KEY), raw(OTHER)), KIND)) == "envelope_signer_unknown"
    assert refusal(lambda: verify(both, raw(KEY), KIND)) == "envelope_signer_unknown"


def test_one_key_under_two_key_ids_does_not_count_as_two_signers() -> None:
    made = Envelope(canonical(statement(KIND, SUBJECTS, {})), PAYLOAD_TYPE, {})
    for name in (key_id(raw(KEY)), key_id(raw(OTHER))):
        made.sign(CryptoSigner(KEY, SSlibKey.from_crypto(KEY.public_key(), keyid=name)))
    assert len(made.signatures) == 2
    forged = made.to_dict()
    assert refusal(lambda: verify(forged, raw(KEY), KIND)) == "envelope_keys_not_distinct"
    assert refusal(lambda: verify(forged, (raw(KEY), raw(OTHER)), KIND)) == "envelope_signature_invalid"
    assert refusal(lambda: verify(forged, (raw(KEY), raw(KEY)), KIND)) == "envelope_keys_not_distinct"


def test_another_signer_and_a_forged_key_id_are_refused() -> None:
    assert refusal(lambda: verify(envelope(), raw(OTHER), KIND)) == "envelope_signer_unknown"
    borrowed = envelope()
    borrowed["signatures"][0]["keyid"] = key_id(raw(OTHER))
    assert refusal(lambda: verify(borrowed, raw(OTHER), KIND)) == "envelope_signature_invalid"
    assert refusal(lambda: verify(envelope(), b"short", KIND)) == "envelope_signer_unknown"
    assert refusal(lambda: verify(envelope(), (), KIND)) == "envelope_keys_not_distinct"


def test_an_exchanged_payload_type_is_refused() -> None:
    made = envelope() | {"payloadType": "application/json"}
    assert refusal(lambda: verify(made, raw(KEY), KIND)) == "envelope_payload_type"
    signed_so = seal_envelope(canonical(statement(KIND, {}, {})), "application/json", KEY)
    assert refusal(lambda: verify(signed_so, raw(KEY), KIND)) == "envelope_payload_type"


def test_another_predicate_type_is_refused() -> None:
    assert refusal(lambda: verify(envelope(), raw(KEY), "urn:other")) == "predicate_type"


def with_signature(**changes: Any) -> dict[str, Any]:
    made = envelope()
    made["signatures"][0].update(changes)
    return made


FORMS: list[Any] = [
    None,
    [],
    "",
    {},
    {**envelope(), "extra": 1},
    {key: value for key, value in envelope().items() if key != "payloadType"},
    {**envelope(), "payload": 5},
    {**envelope(), "payload": "***"},
    {**envelope(), "payload": "\ud800"},
    {**envelope(), "payload": envelope()["payload"] + "\n"},
    {**envelope(), "payload": "A" * (7 * 1024 * 1024)},
    {**envelope(), "payloadType": None},
    {**envelope(), "signatures": []},
    {**envelope(), "signatures": {}},
    {**envelope(), "signatures": [1]},
    {**envelope(), "signatures": envelope()["signatures"] * 2},
    {**envelope(), "signatures": envelope()["signatures"] * 9},
    with_signature(extra=1),
    with_signature(sig=5),
    with_signature(sig="AAAA"),
    with_signature(sig="*" * 88),
    with_signature(keyid=None),
    with_signature(keyid="x" * 65),
]


@pytest.mark.parametrize("made", FORMS)
def test_what_is_not_exactly_an_envelope_is_refused(made: Any) -> None:
    assert refusal(lambda: verify(made, raw(KEY), KIND)) == "envelope_malformed"


def test_another_base64_encoding_of_the_same_bytes_is_refused() -> None:
    made = seal_envelope(b"\xfb\xff!", PAYLOAD_TYPE, KEY)
    assert made["payload"] == "+/8h"
    assert refusal(lambda: open_envelope(made | {"payload": "-_8h"}, PAYLOAD_TYPE, [raw(KEY)])) == "envelope_malformed"


SUBJECT = {"name": "row", "digest": {"sha256": "11" * 32}}
HONEST = statement(KIND, {"row": "11" * 32}, {})
STATEMENTS: list[bytes] = [
    b"",
    b"null",
    b"[" * 9000,
    b'{"a":NaN}',
    canonical(HONEST)[:-1] + b',"predicateType":"urn:other"}',
    canonical({**HONEST, "_type": "https://in-toto.io/Statement/v0.1"}),
    canonical({**HONEST, "extra": 1}),
    canonical({**HONEST, "subject": "row"}),
    canonical({**HONEST, "subject": [SUBJECT, SUBJECT]}),
    canonical({**HONEST, "subject": [{"name": "row", "digest": {"sha256": "XY"}}]}),
    canonical({**HONEST, "subject": [{"name": "row", "digest": {"sha1": "11"}}]}),
    canonical({**HONEST, "subject": [{**SUBJECT, "name": str(number)} for number in range(65)]}),
    canonical({**HONEST, "predicate": []}),
    json.dumps({**HONEST, "\ud800": 1}).encode(),
]


@pytest.mark.parametrize("payload", STATEMENTS)
def test_a_signed_payload_that_is_not_a_statement_is_refused(payload: bytes) -> None:
    made = seal_envelope(payload, PAYLOAD_TYPE, KEY)
    assert refusal(lambda: verify(made, raw(KEY), KIND)) == "statement_malformed"


TEXT = json.dumps(envelope())


@settings(max_examples=300)
@given(st.integers(0, len(TEXT) - 1), st.sampled_from('Aaz09+/="{}:, '))
def test_no_changed_character_of_an_envelope_is_accepted(position: int, character: str) -> None:
    if TEXT[position] == character:
        return
    try:
        changed = json.loads(TEXT[:position] + character + TEXT[position + 1 :])
    except ValueError:
        return
    if changed == json.loads(TEXT):
        return
    assert refusal(lambda: verify(changed, raw(KEY), KIND)).startswith("envelope_")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.binary(max_size=40).map(base64.b64encode),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["payload", "payloadType", "signatures"]), JSON))
def test_arbitrary_objects_raise_only_typed_errors(changes: dict[str, Any]) -> None:
    made = {**envelope(), **changes}
    if made != envelope():
        assert refusal(lambda: verify(made, raw(KEY), KIND)).startswith("envelope_")
