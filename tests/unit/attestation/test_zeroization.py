"""The zeroization receipt as a document, and what it is held against; each fault has its vectors (`tests/vectors`)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.attestation.dsse import countersign
from engine.attestation.policy import UNREADABLE, default_policy
from engine.attestation.reasons import REASONS
from engine.attestation.receipts import ZEROIZATION, sign, statement, verify
from engine.attestation.wipe_proof import (
    REQUIRED_CLASSES,
    TARGETS,
    contradictions,
    runtime_state,
    zeroization_faults,
)
from engine.attestation.zeroization import (
    ABANDONED_METHODS,
    METHODS,
    SANITIZATION,
    Area,
    Device,
    Scan,
    Zeroization,
    read_zeroization,
    zeroization_receipt,
)
from engine.errors import RefusedError
from tests.vectors import honest
from tests.vectors.case import vectors

ATTESTER, RUN_KEY = honest.signing("attester"), honest.signing("run")
raw = honest.public
proof = honest.zeroization
EXPECTED = honest.expected_wipe()


def test_a_complete_proof_has_no_fault() -> None:
    assert zeroization_faults(proof(), EXPECTED) == ()
    assert runtime_state(proof(), EXPECTED) == "zeroized"


def test_a_gpu_at_its_baseline_is_not_a_fault() -> None:
    device = Device(present=True, at_baseline=True, compute_processes=0, bytes_before=9, bytes_after=9)
    assert runtime_state(proof(device=device), honest.expected_wipe(gpu=True)) == "zeroized"
    maps = honest.scan(proof().after["trainer"].hits, skipped={"device": Area(2, 2**20)})
    on_gpu = proof(device=device, after={**proof().after, "trainer": maps})
    assert zeroization_faults(on_gpu, honest.expected_wipe(gpu=True)) == ()


def test_every_fault_has_a_reason_and_a_vector() -> None:
    shown = {code for one in vectors() if one.kind == "zeroization" for code in one.codes}
    names = {name for name in REASONS if name.startswith("zeroization_")}
    of_events = {"zeroization_missing", "zeroization_not_claimed", "zeroization_stack_hits"}
    assert names - of_events == {code for code in shown if code.startswith("zeroization_")}


def test_every_field_of_the_receipt_has_a_vector_that_changes_it() -> None:
    """A field that nobody compares would leave the receipt faultless with any value."""
    changed: dict[str, Any] = {
        "run_id": "run-2", "segment": "raw", "manifest_sha256": "f" * 64, "nonce_sha256": "f" * 64,
        "adapter_sha256": "f" * 64, "methods": ["cat"], "before": {}, "after": {}, "processes": [],
        "scratch_empty": False, "deleted_files_held": 1, "processes_unseen": 10_000, "device": {"present": True},
        "pod_head": "f" * 64, "began": "2027-01-01T00:00:00.000Z", "ended": "2025-01-01T00:00:00.000Z",
        "sanitization": "NIST SP 800-88 Purge",
    }  # fmt: skip
    plain = msgspec.to_builtins(proof())
    assert set(changed) == set(plain)
    for field, value in changed.items():
        assert judged({**plain, field: value}) != (), field


def test_every_field_of_a_scan_and_of_a_process_is_compared() -> None:
    plain = msgspec.to_builtins(proof())
    scans: dict[str, Any] = {
        "state": "gone", "bytes_read": 0, "regions_read": 0, "hits": {}, "where": {"heap": 1},
        "skipped": {"heap": {"regions": 1, "bytes": 1}}, "unread_other": [{"why": "short", "kind": "x", "bytes": 1}],
    }  # fmt: skip
    assert {*scans, "descriptors_read"} == set(Scan.__struct_fields__)
    for field, value in scans.items():
        trainer = {**plain["after"]["trainer"], field: value}
        assert judged({**plain, "after": {**plain["after"], "trainer": trainer}}) != (), field
    payload = {**plain["before"]["payload"], "descriptors_read": 0}
    assert judged({**plain, "before": {**plain["before"], "payload": payload}}) != ()
    for field, value in {"role": "cat", "pid": 11, "gone": False}.items():
        first = {**plain["processes"][0], field: value}
        assert judged({**plain, "processes": [first, *plain["processes"][1:]]}) != (), field


def judged(body: dict[str, Any]) -> tuple[str, ...]:
    """The codes of a signed receipt with this content."""
    try:
        receipt = msgspec.convert(body, Zeroization, strict=True)
        envelope = zeroization_receipt(receipt, ATTESTER)
        opened = read_zeroization(
            envelope, raw(ATTESTER), run_id=proof().run_id, manifest_sha256=proof().manifest_sha256,
            nonce_sha256=proof().nonce_sha256,
        )  # fmt: skip
    except msgspec.ValidationError:
        return ("predicate_malformed",)
    except RefusedError as error:
        return (error.code,)
    return zeroization_faults(opened, EXPECTED)


def test_what_an_abandoned_segment_reports_is_no_contradiction_and_no_proof() -> None:
    kept = ("supervisor", "payload", "scanner")
    abandoned = proof(
        before={name: proof().before[name] for name in ("keyproc open",)},
        after={name: proof().after[name] for name in kept},
        methods=list(ABANDONED_METHODS),
        adapter_sha256=None,
    )
    expected = honest.expected_wipe(adapter_sha256=None, adapter_size=0)
    assert contradictions(abandoned, expected) == ()
    assert zeroization_faults(abandoned, expected) == ("zeroization_incomplete", "zeroization_no_control")


def test_a_receipt_of_public_weights_must_not_have_searched_for_them() -> None:
    hub = honest.expected_wipe(secret_weights=False)
    assert "zeroization_incomplete" in zeroization_faults(proof(), hub)

    def without(scans: dict[str, Scan]) -> dict[str, Scan]:
        return {
            name: msgspec.structs.replace(
                scan,
                hits={each: count for each, count in scan.hits.items() if each != "weights"},
                where={place: sum(scan.hits.values()) - scan.hits.get("weights", 0) for place in scan.where},
            )
            for name, scan in scans.items()
        }

    assert zeroization_faults(proof(before=without(proof().before), after=without(proof().after)), hub) == ()


def test_the_claims_are_no_larger_than_what_is_done() -> None:
    assert "Purge" not in SANITIZATION
    assert "no medium" in SANITIZATION
    assert set(ABANDONED_METHODS) < set(METHODS)


def test_the_policy_bounds_what_may_be_unread_and_unseen() -> None:
    strict = msgspec.structs.replace(default_policy(), max_processes_unseen=0, max_unread_bytes={})
    faults = zeroization_faults(proof(processes_unseen=1), honest.expected_wipe(policy=strict))
    assert faults == ("zeroization_unread", "zeroization_unseen")


def test_the_required_classes_are_named_as_the_workers_patterns() -> None:
    from engine.worker.isolation import patterns

    keys = (patterns.CONTENT_KEY, patterns.RELEASE_KEY, patterns.ADAPTER_KEY)
    known = {*keys, *(name + patterns.HALF for name in keys), patterns.CANARY_ROW, patterns.ADAPTER, patterns.MOMENTS}
    assert set(REQUIRED_CLASSES) == known
    assert {name for needs in TARGETS.values() for name in needs.control} == known


def test_the_classes_that_may_be_skipped_are_those_that_the_scanner_counts() -> None:
    from engine.worker.isolation.scan import DESCRIPTOR
    from engine.worker.isolation.smaps import SKIP_CLASSES

    assert set(UNREADABLE) == {*SKIP_CLASSES, DESCRIPTOR}


def test_the_scanners_own_report_fits_the_receipt() -> None:
    from engine.worker.isolation.scan import Report

    report = Report(bytes_read=5, regions_read=1)
    report.unread_other.append({"why": "short", "kind": "descriptor", "bytes": 1})
    report.hits["content_key"] += 2
    report.skip("vvar", 4096)
    fitted = msgspec.convert(report.as_dict(["content_key", "adapter"]), Scan, strict=True)
    assert fitted.hits == {"content_key": 2, "adapter": 0}
    assert fitted.skipped == {"vvar": Area(1, 4096)}


def read(envelope: object, *, publics: bytes | tuple[bytes, ...] = raw(ATTESTER), **changes: str) -> Zeroization:
    expected = {
        "run_id": proof().run_id,
        "manifest_sha256": proof().manifest_sha256,
        "nonce_sha256": proof().nonce_sha256,
        **changes,
    }
    return read_zeroization(envelope, publics, **expected)


def test_the_receipt_survives_its_round_trip_with_both_signatures() -> None:
    envelope = zeroization_receipt(proof(), ATTESTER)
    assert read(envelope) == proof()
    assert read(countersign(envelope, RUN_KEY), publics=(raw(ATTESTER), raw(RUN_KEY))) == proof()


@pytest.mark.parametrize("change", [{"run_id": "run-2"}, {"manifest_sha256": "ff" * 32}, {"nonce_sha256": "ff" * 32}])
def test_a_receipt_replayed_from_another_run_package_or_nonce_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(RefusedError) as caught:
        read(zeroization_receipt(proof(), ATTESTER), publics=raw(ATTESTER), **change)
    assert caught.value.code == "receipt_other_run"


def test_a_forged_receipt_is_refused() -> None:
    with pytest.raises(RefusedError) as caught:
        read(zeroization_receipt(proof(), RUN_KEY))
    assert caught.value.code == "envelope_signer_unknown"


@pytest.mark.parametrize("change", [{"more": 1}, {"before": []}, {"scratch_empty": "yes"}, {"after": {"key": {}}}])
def test_a_signed_receipt_that_does_not_match_its_schema_is_refused(change: dict[str, Any]) -> None:
    body = verify(zeroization_receipt(proof(), ATTESTER), raw(ATTESTER), ZEROIZATION)
    with pytest.raises(RefusedError) as caught:
        read(sign(statement(ZEROIZATION, {}, {**body, **change}), ATTESTER))
    assert caught.value.code == "predicate_malformed"
