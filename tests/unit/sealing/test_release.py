"""Key release: HPKE, and everything that a release is bound to."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RefusedError, SealingError
from engine.sealing.memory import random_keys
from engine.sealing.release import open_release, release_info, seal_release

BINDING = {
    "evidence_sha256": "11" * 32,
    "policy_sha256": "22" * 32,
    "manifest_sha256": "33" * 32,
    "run_id": "run-1",
}
INFO = release_info(**BINDING)


def raw_public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def refusal(ciphertext: bytes, key: X25519PrivateKey, info: bytes) -> str:
    with pytest.raises(RefusedError) as caught:
        open_release(ciphertext, key, info)
    return caught.value.code


def test_released_keys_arrive_whole() -> None:
    cnf, keys = X25519PrivateKey.generate(), random_keys(7)
    assert open_release(seal_release(keys, raw_public(cnf), INFO), cnf, INFO) == keys


def test_the_library_alone_opens_a_release() -> None:
    cnf, keys = X25519PrivateKey.generate(), random_keys(2)
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    assert suite.decrypt(seal_release(keys, raw_public(cnf), INFO), cnf, info=INFO) == keys


@pytest.mark.parametrize("field", BINDING)
def test_a_release_for_other_evidence_policy_package_or_run_is_refused(field: str) -> None:
    cnf = X25519PrivateKey.generate()
    other = release_info(**{**BINDING, field: "run-2" if field == "run_id" else "44" * 32})
    sealed = seal_release(random_keys(1), raw_public(cnf), INFO)
    assert refusal(sealed, cnf, other) == "release_wrong_binding"


def test_another_key_is_refused() -> None:
    sealed = seal_release(random_keys(1), raw_public(X25519PrivateKey.generate()), INFO)
    assert refusal(sealed, X25519PrivateKey.generate(), INFO) == "release_wrong_binding"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_do_not_open_and_raise_only_typed_errors(ciphertext: bytes) -> None:
    assert refusal(ciphertext, X25519PrivateKey.generate(), INFO) == "release_wrong_binding"


@given(st.integers(0, 79), st.integers(0, 7))
def test_no_flipped_bit_opens(position: int, bit: int) -> None:
    cnf = X25519PrivateKey.generate()
    sealed = bytearray(seal_release(random_keys(1), raw_public(cnf), INFO))
    sealed[position] ^= 1 << bit
    assert refusal(bytes(sealed), cnf, INFO) == "release_wrong_binding"


@pytest.mark.parametrize("public", [b"", b"x" * 31, b"x" * 33, bytes(32), b"\1" + bytes(31)])
def test_an_unusable_receiving_key_is_refused(public: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        seal_release(random_keys(1), public, INFO)
    assert caught.value.code == "cnf_invalid"


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": ""},
        {"run_id": "a b"},
        {"evidence_sha256": "XX" * 32},
        {"policy_sha256": "11" * 31},
        {"manifest_sha256": ""},
    ],
)
def test_a_release_is_never_bound_to_malformed_values(change: dict[str, str]) -> None:
    with pytest.raises(SealingError) as caught:
        release_info(**{**BINDING, **change})
    assert caught.value.code == "release_info_invalid"
