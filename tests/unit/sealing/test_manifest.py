"""The manifest's digest and its strict parser."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SealingError
from engine.sealing.manifest import (
    MAX_FILE_BYTES,
    MAX_FILES,
    FileEntry,
    Manifest,
    manifest_bytes,
    manifest_digest,
    parse_manifest,
)
from engine.wire import canonical

DIGEST = "ab" * 32


def a_manifest(**changes: Any) -> Manifest:
    made = Manifest(
        version=1,
        package_id="0f" * 16,
        created="2026-01-02T03:04:05.678Z",
        run_id="run-1",
        plan_digest=DIGEST,
        policy_digest="cd" * 32,
        files=(FileEntry("config.json", 2, DIGEST), FileEntry("weights-00001.safetensors", 99, DIGEST)),
    )
    return msgspec.structs.replace(made, **changes)


def encoded(**changes: Any) -> bytes:
    return canonical({**msgspec.to_builtins(a_manifest()), **changes})


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "a.json", "size": 1, "sha256": DIGEST, **changes}


def refusal(data: bytes) -> str:
    with pytest.raises(SealingError) as caught:
        parse_manifest(data)
    return caught.value.code


def test_a_manifest_survives_its_round_trip() -> None:
    assert parse_manifest(manifest_bytes(a_manifest())) == a_manifest()


def test_the_digest_is_over_the_canonical_bytes() -> None:
    assert manifest_digest(a_manifest()) == hashlib.sha256(manifest_bytes(a_manifest())).hexdigest()
    assert manifest_digest(a_manifest(run_id="run-2")) != manifest_digest(a_manifest())


@pytest.mark.parametrize(
    "name",
    [
        "../up",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "",
        ".",
        "..",
        ".hidden",
        "a..b",
        "nul\0",
        "new\nline",
        "x" * 129,
        "ünïcode",
        "space here",
        "~root",
        "C:evil",
        "-flag",
    ],
)
def test_names_that_are_not_plain_file_names_are_refused(name: str) -> None:
    assert refusal(encoded(files=[entry(name=name)])) == "manifest_name"


@pytest.mark.parametrize("second", ["a.json", "A.JSON"])
def test_a_file_listed_twice_is_refused(second: str) -> None:
    assert refusal(encoded(files=[entry(), entry(name=second)])) == "manifest_duplicate"


@pytest.mark.parametrize("size", [-1, MAX_FILE_BYTES + 1])
def test_sizes_outside_the_limits_are_refused(size: int) -> None:
    assert refusal(encoded(files=[entry(size=size)])) == "manifest_size"


def test_a_total_size_over_the_limit_is_refused() -> None:
    files = [entry(name=f"f{index}", size=MAX_FILE_BYTES) for index in range(17)]
    assert refusal(encoded(files=files)) == "manifest_size"


@pytest.mark.parametrize("count", [0, MAX_FILES + 1])
def test_file_counts_outside_the_limits_are_refused(count: int) -> None:
    assert refusal(encoded(files=[entry(name=f"f{index}") for index in range(count)])) == "manifest_count"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 2}, "manifest_version"),
        ({"extra": 1}, "manifest_invalid"),
        ({"files": [entry(mode=7)]}, "manifest_invalid"),
        ({"files": [entry(size=1.5)]}, "manifest_invalid"),
        ({"files": [entry(size=True)]}, "manifest_invalid"),
        ({"files": [entry(size="1")]}, "manifest_invalid"),
        ({"files": [entry(sha256="AB" * 32)]}, "manifest_invalid"),
        ({"files": [entry(sha256=DIGEST + "\n")]}, "manifest_invalid"),
        ({"files": "none"}, "manifest_invalid"),
        ({"plan_digest": "short"}, "manifest_invalid"),
        ({"package_id": "../x"}, "manifest_invalid"),
        ({"run_id": "a/b"}, "manifest_invalid"),
        ({"created": "yesterday"}, "manifest_invalid"),
    ],
)
def test_values_that_do_not_fit_the_schema_are_refused(change: dict[str, Any], code: str) -> None:
    assert refusal(encoded(**change)) == code


def test_a_missing_field_is_refused() -> None:
    raw = msgspec.to_builtins(a_manifest())
    del raw["plan_digest"]
    assert refusal(canonical(raw)) == "manifest_invalid"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "manifest_invalid"),
        (b"{", "manifest_invalid"),
        (b"[]", "manifest_invalid"),
        (b'{"a":1,"a":2}', "manifest_invalid"),
        (b'{"a":NaN}', "manifest_invalid"),
        (b'{"a":1e999}', "manifest_invalid"),
        (b"[" * 100_000, "manifest_invalid"),
        (b" " * (1024 * 1024 + 1), "manifest_too_large"),
        (json.dumps(msgspec.to_builtins(a_manifest())).encode(), "manifest_not_canonical"),
        (manifest_bytes(a_manifest()) + b"\n", "manifest_not_canonical"),
    ],
)
def test_bytes_that_are_not_canonical_json_are_refused(data: bytes, code: str) -> None:
    assert refusal(data) == code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_only_typed_errors(data: bytes) -> None:
    refusal(data)


@given(st.dictionaries(st.sampled_from(Manifest.__struct_fields__), JSON, min_size=1))
def test_arbitrary_json_raises_only_typed_errors(changes: dict[str, Any]) -> None:
    raw = {**msgspec.to_builtins(a_manifest()), **changes}
    data = json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()
    try:
        parse_manifest(data)
    except SealingError as error:
        assert error.code.startswith("manifest_")


@given(st.integers(0, len(manifest_bytes(a_manifest())) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(position: int, flip: int) -> None:
    data = bytearray(manifest_bytes(a_manifest()))
    data[position] ^= flip
    try:
        assert manifest_digest(parse_manifest(bytes(data))) != manifest_digest(a_manifest())
    except SealingError as error:
        assert error.code.startswith("manifest_")
