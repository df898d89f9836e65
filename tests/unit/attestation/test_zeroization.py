"""The zeroization receipt: when it proves zeroization, and what invalidates the proof."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.dsse import countersign
from engine.attestation.reasons import REASONS
from engine.attestation.receipts import ZEROIZATION, sign, statement, verify
from engine.attestation.zeroization import (
    ALLOWED_UNREAD,
    REQUIRED_CLASSES,
    REQUIRED_WITH_ADAPTER,
    Area,
    Device,
    ProcessEnd,
    Scan,
    Zeroization,
    read_zeroization,
    runtime_state,
    zeroization_faults,
    zeroization_receipt,
)
from engine.errors import RefusedError

ATTESTER, RUN_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
CLASSES = (*REQUIRED_CLASSES, *REQUIRED_WITH_ADAPTER, "weights")


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def scan(hits: dict[str, int], **changes: Any) -> Scan:
    read = Scan(
        state="read",
        bytes_read=10_000,
        regions_read=12,
        hits=hits,
        skipped={"clean_file": Area(3, 4096), "vvar": Area(1, 4096)},
    )
    return msgspec.structs.replace(read, **changes)


NONE = dict.fromkeys(CLASSES, 0)
KEYS = [name for name in CLASSES if "key" in name]


def proof(**changes: Any) -> Zeroization:
    made = Zeroization(
        run_id="run-1",
        segment="protected",
        manifest_sha256="01" * 32,
        nonce_sha256="02" * 32,
        adapter_sha256="03" * 32,
        methods=["memset", "sweep", "punch hole"],
        before={
            "key": scan({**NONE, **dict.fromkeys(KEYS, 2)}),
            "trainer": scan({**NONE, "canary_row": 39, "weights": 9, "adapter": 4, "moments": 2}),
        },
        after={"key": scan(NONE), "trainer": scan(NONE), "supervisor": scan(NONE)},
        processes=[ProcessEnd(role="key", pid=10, start_time=99, gone=True)],
        scratch_empty=True,
        deleted_files_held=0,
        device=Device(present=False),
        pod_head="04" * 32,
        began="2026-05-17T12:00:00.000Z",
        ended="2026-05-17T12:00:01.000Z",
    )
    return msgspec.structs.replace(made, **changes)


def test_a_complete_proof_has_no_fault() -> None:
    assert zeroization_faults(proof()) == ()
    assert runtime_state(proof()) == "zeroized"


def test_a_gpu_at_its_baseline_is_not_a_fault() -> None:
    device = Device(present=True, at_baseline=True, compute_processes=0)
    assert runtime_state(proof(device=device)) == "zeroized"


SPOILED: list[tuple[str, dict[str, Any], str]] = [
    (
        "a class without a hit before",
        {"before": {"trainer": scan({**NONE, "canary_row": 1})}},
        "zeroization_no_control",
    ),
    ("no scan before", {"before": {}}, "zeroization_no_control"),
    ("a hit after", {"after": {**proof().after, "trainer": scan({**NONE, "weights": 1})}}, "zeroization_hits"),
    (
        "half a key after",
        {"after": {**proof().after, "key": scan({**NONE, "content_key_half": 1})}},
        "zeroization_hits",
    ),
    (
        "a hit in a process that was not scanned before",
        {"after": {**proof().after, "supervisor": scan({**NONE, "adapter": 1})}},
        "zeroization_hits",
    ),
    (
        "an area that was not read",
        {"after": {**proof().after, "trainer": scan(NONE, unread_other=[{"why": "EIO", "bytes": 4096}])}},
        "zeroization_unread",
    ),
    (
        "a class of areas that may not be skipped",
        {"after": {**proof().after, "trainer": scan(NONE, skipped={"heap": Area(1, 4096)})}},
        "zeroization_unread",
    ),
    ("a scan of nothing", {"after": {**proof().after, "key": scan(NONE, bytes_read=0)}}, "zeroization_unread"),
    ("a scan that failed", {"after": {**proof().after, "key": scan(NONE, state="gone")}}, "zeroization_unread"),
    (
        "a process that is still running",
        {"processes": [ProcessEnd(role="key", pid=10, start_time=99, gone=False)]},
        "zeroization_process_alive",
    ),
    ("no process listed", {"processes": []}, "zeroization_incomplete"),
    ("a target not scanned again", {"after": {"key": scan(NONE)}}, "zeroization_incomplete"),
    (
        "a class not searched again",
        {"after": {**proof().after, "trainer": scan({"content_key": 0})}},
        "zeroization_incomplete",
    ),
    ("scratch", {"scratch_empty": False}, "zeroization_scratch"),
    ("deleted files", {"deleted_files_held": 1}, "zeroization_deleted_files"),
    ("device memory", {"device": Device(present=True, at_baseline=False, compute_processes=0)}, "zeroization_device"),
    ("device unknown", {"device": Device(present=True)}, "zeroization_device"),
    ("device in use", {"device": Device(present=True, at_baseline=True, compute_processes=1)}, "zeroization_device"),
]


@pytest.mark.parametrize(("what", "change", "code"), SPOILED, ids=[what for what, _, _ in SPOILED])
def test_whatever_is_unproven_makes_it_unverified(what: str, change: dict[str, Any], code: str) -> None:
    receipt = proof(**change)
    assert code in zeroization_faults(receipt)
    assert runtime_state(receipt) == "unverified"
    assert code in REASONS


@pytest.mark.parametrize("absent", [*REQUIRED_CLASSES, *REQUIRED_WITH_ADAPTER])
def test_a_required_class_that_was_never_searched_is_a_fault(absent: str) -> None:
    without = {name: 3 for name in CLASSES if name != absent}
    receipt = proof(before={"trainer": scan(without)}, after={"trainer": scan(dict.fromkeys(without, 0))})
    assert zeroization_faults(receipt) == ("zeroization_incomplete",)


def test_without_an_adapter_no_adapter_key_is_required() -> None:
    counts = {name: 3 for name in CLASSES if name not in REQUIRED_WITH_ADAPTER}
    after = {"trainer": scan(dict.fromkeys(counts, 0))}
    assert zeroization_faults(proof(before={"trainer": scan(counts)}, after=after, adapter_sha256=None)) == ()


def test_the_required_classes_are_named_as_the_workers_patterns() -> None:
    from engine.worker.isolation import patterns

    keys = (patterns.CONTENT_KEY, patterns.RELEASE_KEY, patterns.ADAPTER_KEY)
    known = {*keys, *(name + patterns.HALF for name in keys), patterns.CANARY_ROW, patterns.ADAPTER, patterns.MOMENTS}
    assert {*REQUIRED_CLASSES, *REQUIRED_WITH_ADAPTER} == known


def test_negative_counts_do_not_cancel_hits() -> None:
    after = {"key": scan({**NONE, "adapter": -1}), "trainer": scan({**NONE, "adapter": 1})}
    assert "zeroization_incomplete" in zeroization_faults(proof(after=after))
    assert "zeroization_hits" in zeroization_faults(proof(after=after))


def test_the_classes_that_may_be_skipped_are_those_that_the_scanner_counts() -> None:
    from engine.worker.isolation.scan import DESCRIPTOR
    from engine.worker.isolation.smaps import SKIP_CLASSES

    assert set(ALLOWED_UNREAD) == {*SKIP_CLASSES, DESCRIPTOR}


def test_the_scanners_own_report_fits_the_receipt() -> None:
    from engine.worker.isolation.scan import Report

    report = Report(bytes_read=5, regions_read=1)
    report.hits["content_key"] += 2
    report.skip("vvar", 4096)
    fitted = msgspec.convert(report.as_dict(["content_key", "adapter"]), Scan, strict=True)
    assert fitted.hits == {"content_key": 2, "adapter": 0}
    assert fitted.skipped == {"vvar": Area(1, 4096)}


def read(envelope: object, *, publics: bytes | tuple[bytes, ...] = raw(ATTESTER), **changes: str) -> Zeroization:
    expected = {"run_id": "run-1", "manifest_sha256": "01" * 32, "nonce_sha256": "02" * 32, **changes}
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
