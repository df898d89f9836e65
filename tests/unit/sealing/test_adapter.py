"""Sealed adapters: round trips, interoperation and refusals."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rfc8785
from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import RefusedError, SealingError
from engine.sealing.adapter import AdapterBinding, open_adapter, read_adapter_header, seal_adapter
from engine.sealing.memory import random_key
from engine.wire import canonical

BINDING = AdapterBinding("run-1", "protected", "11" * 32, "22" * 32)
RECIPIENT = X25519PrivateKey.generate()


def sealed(content: bytes, binding: AdapterBinding = BINDING) -> bytes:
    out = io.BytesIO()
    public = RECIPIENT.public_key().public_bytes_raw()
    digest = seal_adapter(memoryview(content), public, binding, random_key(), out)
    assert digest == hashlib.sha256(out.getvalue()).hexdigest()
    return out.getvalue()


def refusal(folder: Path, data: bytes, expect: AdapterBinding | None = BINDING) -> str:
    path = folder / "adapter.sealed"
    path.write_bytes(data)
    with pytest.raises(RefusedError) as caught:
        open_adapter(path, RECIPIENT, expect)
    return caught.value.code


def with_header(data: bytes, **changes: Any) -> bytes:
    line, stream = data.split(b"\n", 1)
    return canonical({**json.loads(line), **changes}) + b"\n" + stream


@pytest.mark.parametrize("size", [1, 16 * 1024, 3_000_000])
def test_an_adapter_survives_its_round_trip(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    path = tmp_path / "adapter.sealed"
    path.write_bytes(sealed(content))
    assert open_adapter(path, RECIPIENT, BINDING) == content
    assert open_adapter(path, RECIPIENT, None) == content
    assert read_adapter_header(path).binding == BINDING


def test_a_few_lines_of_the_library_open_it() -> None:
    line, stream = sealed(b"adapter weights").split(b"\n", 1)
    header = json.loads(line)
    wrapped = base64.b64decode(header.pop("wrapped_key"))
    context = rfc8785.dumps(header)
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    opener = Cobblestone256Decryptor(suite.decrypt(wrapped, RECIPIENT, info=context), context)
    assert opener.update(stream) + opener.finalize() == b"adapter weights"


def test_the_plaintext_is_not_in_the_file() -> None:
    content = os.urandom(64) * 100
    assert content[:64] not in sealed(content)


def test_two_seals_of_one_adapter_are_distinct_artifacts() -> None:
    assert sealed(b"same") != sealed(b"same")


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(BINDING, run_id="run-2"),
        msgspec.structs.replace(BINDING, segment="raw"),
        msgspec.structs.replace(BINDING, manifest_sha256="33" * 32),
        msgspec.structs.replace(BINDING, nonce_sha256="33" * 32),
    ],
)
def test_an_adapter_of_another_run_segment_package_or_nonce_is_refused(other: AdapterBinding, tmp_path: Path) -> None:
    assert refusal(tmp_path, sealed(b"content", other)) == "adapter_wrong_binding"


@pytest.mark.parametrize(
    "change", [{"run_id": "run-2"}, {"segment": "raw"}, {"manifest_sha256": "33" * 32}, {"size": 6}]
)
def test_a_header_that_was_changed_does_not_unwrap(change: dict[str, Any], tmp_path: Path) -> None:
    data = with_header(sealed(b"content"), **change)
    assert refusal(tmp_path, data, expect=None) == "adapter_wrong_key"


def test_an_adapter_for_another_operator_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.sealed"
    path.write_bytes(sealed(b"content"))
    with pytest.raises(RefusedError) as caught:
        open_adapter(path, X25519PrivateKey.generate(), BINDING)
    assert caught.value.code == "adapter_wrong_key"


def test_a_wrapped_key_of_another_adapter_is_refused(tmp_path: Path) -> None:
    one, two = sealed(b"content"), sealed(b"content")
    wrapped = json.loads(two.split(b"\n", 1)[0])["wrapped_key"]
    assert refusal(tmp_path, with_header(one, wrapped_key=wrapped)) == "adapter_wrong_context"


@pytest.mark.parametrize("cut", [1, 16, 40_000])
def test_a_cut_adapter_is_refused(cut: int, tmp_path: Path) -> None:
    assert refusal(tmp_path, sealed(bytes(100_000))[:-cut]) == "adapter_truncated"


def test_a_claimed_size_beyond_the_file_is_refused_before_memory_is_allocated(tmp_path: Path) -> None:
    assert refusal(tmp_path, with_header(sealed(b"content"), size=15 * 1024**3)) == "adapter_truncated"


def test_trailing_bytes_and_changed_content_are_refused(tmp_path: Path) -> None:
    data = sealed(bytes(100_000))
    changed = bytearray(data)
    changed[-50_000] ^= 1
    assert refusal(tmp_path, data + b"x") == "adapter_tampered"
    assert refusal(tmp_path, bytes(changed)) == "adapter_tampered"


def str_of_length(data: bytes) -> str:
    """A test id that is the same in every process, although the sealed bytes differ each time."""
    return f"{len(data)} bytes"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{}\n",
        b"null\n",
        b'{"a":1}',
        b"x" * 5000,
        b"\x80\x03pickle",
        with_header(sealed(b"c"), version=2),
        with_header(sealed(b"c"), format="other"),
        with_header(sealed(b"c"), extra=1),
        with_header(sealed(b"c"), size=0),
        with_header(sealed(b"c"), size=-1),
        with_header(sealed(b"c"), size=2**52),
        with_header(sealed(b"c"), segment="third"),
        with_header(sealed(b"c"), run_id="../x"),
        with_header(sealed(b"c"), wrapped_key="!"),
        with_header(sealed(b"c"), wrapped_key="AAAA"),
        with_header(sealed(b"c"), wrapped_key="é"),
        b" " + sealed(b"c"),
    ],
    ids=str_of_length,
)
def test_what_is_not_a_sealed_adapter_is_refused(data: bytes, tmp_path: Path) -> None:
    assert refusal(tmp_path, data) == "adapter_malformed"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_typed_errors(tmp_path: Path, data: bytes) -> None:
    assert refusal(tmp_path, data) == "adapter_malformed"


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_opens(tmp_path: Path, data: st.DataObject) -> None:
    file = bytearray(sealed(b"some adapter content"))
    file[data.draw(st.integers(0, len(file) - 1))] ^= data.draw(st.integers(1, 255))
    assert refusal(tmp_path, bytes(file)).startswith("adapter_")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(sealed(b"content"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(SealingError) as caught:
        open_adapter(tmp_path / "link", RECIPIENT, BINDING)
    assert caught.value.code == "payload_missing"


@pytest.mark.parametrize(
    ("content", "binding"),
    [
        (b"", BINDING),
        (b"x", msgspec.structs.replace(BINDING, segment="both")),
        (b"x", msgspec.structs.replace(BINDING, nonce_sha256="")),
    ],
)
def test_nothing_is_sealed_without_content_and_a_valid_binding(content: bytes, binding: AdapterBinding) -> None:
    with pytest.raises(RefusedError) as caught:
        sealed(content, binding)
    assert caught.value.code == "adapter_binding_invalid"


@pytest.mark.parametrize("public", [b"short", bytes(32)])
def test_an_unusable_recipient_key_is_refused(public: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        seal_adapter(memoryview(b"x"), public, BINDING, random_key(), io.BytesIO())
    assert caught.value.code == "recipient_invalid"
