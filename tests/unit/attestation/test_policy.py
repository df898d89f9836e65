"""Policies: the schema, and which policies may replace the built-in one."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.attestation.policy import (
    CONTROLS,
    Policy,
    checked_policy,
    default_policy,
    load_policy,
    loosened,
    narrower_or_equal,
    policy_digest,
    policy_from,
)
from engine.errors import RefusedError

DEFAULT = default_policy()


def encoded(**changes: Any) -> bytes:
    return json.dumps({**msgspec.to_builtins(DEFAULT), **changes}).encode()


def refusal(data: bytes) -> str:
    with pytest.raises(RefusedError) as caught:
        load_policy(data)
    return caught.value.code


def test_the_built_in_policy_requires_controls_that_work_unprivileged() -> None:
    assert set(DEFAULT.required_controls) <= set(CONTROLS)
    assert {"no_core", "no_dump", "no_new_privs", "memfd_seals", "seccomp"} <= set(DEFAULT.required_controls)
    assert DEFAULT.tiers == ("software",)
    assert not DEFAULT.allow_debug
    assert DEFAULT.sealed_adapter
    assert DEFAULT.positive_control


def test_the_controls_are_those_that_the_worker_reports() -> None:
    from engine.worker.isolation.hardening import CONTROLS as REPORTED

    assert set(REPORTED) <= set(CONTROLS)


def test_a_policy_survives_the_round_trip_through_builtins() -> None:
    assert policy_from(json.loads(json.dumps(msgspec.to_builtins(DEFAULT)))) == DEFAULT
    assert policy_digest(load_policy(encoded())) == policy_digest(DEFAULT)
    assert policy_digest(load_policy(encoded(version=3))) != policy_digest(DEFAULT)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encoded(extra=1), "policy_unknown_field"),
        (encoded(allowDebugging=True), "policy_unknown_field"),
        (encoded(required_controls=[]), "policy_unknown_field"),
        (encoded(schema=2), "policy_invalid"),
        (encoded(version=0), "policy_invalid"),
        (encoded(version=1.5), "policy_invalid"),
        (encoded(version="1"), "policy_invalid"),
        (encoded(id=""), "policy_invalid"),
        (encoded(tiers=[]), "policy_invalid"),
        (encoded(tiers=["software", "software"]), "policy_invalid"),
        (encoded(tiers=["cloud"]), "policy_invalid"),
        (encoded(requiredControls=["firewall"]), "policy_invalid"),
        (encoded(requiredControls="seccomp"), "policy_invalid"),
        (encoded(maxEvidenceAgeSeconds=0), "policy_invalid"),
        (encoded(maxEvidenceAgeSeconds=10**9), "policy_invalid"),
        (encoded(maxClockSkewSeconds=-1), "policy_invalid"),
        (encoded(allowDebug=None), "policy_invalid"),
        (b"{}", "policy_invalid"),
        (b"[]", "policy_invalid"),
        (b"", "policy_invalid"),
        (b'{"version":1,"version":2}', "policy_invalid"),
        (b'{"version":NaN}', "policy_invalid"),
        (b" " * 70_000, "policy_invalid"),
        (b"[" * 50_000, "policy_invalid"),
    ],
)
def test_a_policy_that_does_not_fit_its_schema_is_refused(data: bytes, code: str) -> None:
    assert refusal(data) == code


NARROWER: list[dict[str, Any]] = [
    {},
    {"version": 2},
    {"id": "mine"},
    {"required_controls": CONTROLS},
    {"max_evidence_age_seconds": 10},
    {"max_clock_skew_seconds": 0},
]
LOOSER: list[tuple[dict[str, Any], str]] = [
    ({"tiers": ("software", "snp")}, "tiers"),
    ({"required_controls": DEFAULT.required_controls[1:]}, "requiredControls"),
    ({"required_controls": ()}, "requiredControls"),
    ({"max_evidence_age_seconds": 121}, "maxEvidenceAgeSeconds"),
    ({"max_clock_skew_seconds": 301}, "maxClockSkewSeconds"),
    ({"allow_debug": True}, "allowDebug"),
    ({"sealed_adapter": False}, "sealedAdapter"),
    ({"positive_control": False}, "positiveControl"),
    ({"max_processes_unseen": 513}, "maxProcessesUnseen"),
    ({"max_unread_bytes": {"device": 2**30 + 1}}, "maxUnreadBytes"),
    ({"max_unread_bytes": {"memfd_secret": 1}}, "maxUnreadBytes"),
]


@pytest.mark.parametrize("change", NARROWER)
def test_a_narrower_policy_may_replace_the_built_in_one(change: dict[str, Any]) -> None:
    custom = msgspec.structs.replace(DEFAULT, **change)
    assert narrower_or_equal(custom, DEFAULT)
    assert checked_policy(custom, DEFAULT) == custom


@pytest.mark.parametrize(("change", "field"), LOOSER)
def test_a_looser_policy_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    custom = msgspec.structs.replace(DEFAULT, **change)
    assert loosened(custom, DEFAULT) == (field,)
    assert not narrower_or_equal(custom, DEFAULT)
    with pytest.raises(RefusedError) as caught:
        checked_policy(custom, DEFAULT)
    assert caught.value.code == "policy_loosened"
    assert field in caught.value.message


def test_an_older_policy_is_refused() -> None:
    newer = msgspec.structs.replace(DEFAULT, version=5)
    with pytest.raises(RefusedError) as caught:
        checked_policy(DEFAULT, newer)
    assert caught.value.code == "policy_older"
    assert not narrower_or_equal(DEFAULT, newer)


def test_every_field_of_a_policy_is_compared() -> None:
    free = {"schema", "version", "id"}
    compared = {field for _, field in LOOSER}
    assert {field.encode_name for field in msgspec.structs.fields(Policy)} == compared | free


@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: json.dumps({text: text}).encode()))
def test_arbitrary_bytes_raise_only_typed_errors(data: bytes) -> None:
    assert refusal(data) in ("policy_invalid", "policy_unknown_field")
