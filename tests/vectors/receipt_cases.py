"""Vectors about decisions and signed statements: policies, challenges, releases, envelopes, receipts."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.challenge import sign_challenge
from engine.attestation.dsse import countersign, seal_envelope
from engine.attestation.receipts import (
    CLOSING,
    RELEASE,
    ZEROIZATION,
    Closing,
    RunReceipt,
    closing_receipt,
    delegate,
    release_receipt,
    run_subjects,
)
from engine.attestation.receipts import RUN as RUN_TYPE
from engine.attestation.statements import PAYLOAD_TYPE, statement
from engine.attestation.wipe_proof import TARGETS, Expected
from engine.attestation.zeroization import (
    ABANDONED_METHODS,
    Area,
    Device,
    Unread,
    Zeroization,
    subjects_of,
    zeroization_receipt,
)
from engine.system.resources import data_path
from engine.wire import canonical, digest_of
from tests.vectors import honest
from tests.vectors.case import Case, Kind
from tests.vectors.honest import NOW, RUN, digest, public, signing

Json = dict[str, Any]


def _case(name: str, kind: Kind, what: str, stage: str, *codes: str, files: Any = None, **given: Any) -> Case:
    return Case(
        name=name, kind=kind, what=what, given=msgspec.to_builtins(given), files=files or {}, stage=stage, codes=codes
    )


def policies() -> Iterator[Case]:
    """7, 8: policies that are older, looser or invalid."""
    built_in = json.loads(data_path("policies", "default.json").read_bytes())

    def one(name: str, what: str, *codes: str, text: bytes | None = None, floor: int = 1, **changes: Any) -> Case:
        data = json.dumps({**built_in, **changes}, indent=1).encode() if text is None else text
        return _case(name, "policy", what, "policy" if codes else "", *codes, files={"policy.json": data}, floor=floor)

    yield one("00-honest-policy", "The built-in policy.")
    yield one(
        "00-honest-narrower-policy",
        "A stricter policy of the operator.",
        maxEvidenceAgeSeconds=60,
        requiredControls=[*built_in["requiredControls"], "mlockall"],
    )
    yield one("07-older-version", "The policy has an older version than the built-in one.", "policy_older", floor=3)
    yield one("07-version-zero", "The policy has a version below the first.", "policy_invalid", version=0)
    looser: tuple[tuple[str, Any], ...] = (
        ("tiers", ["software", "snp"]),
        ("requiredControls", built_in["requiredControls"][1:]),
        ("maxEvidenceAgeSeconds", 121),
        ("maxClockSkewSeconds", 301),
        ("allowDebug", True),
        ("sealedAdapter", False),
        ("positiveControl", False),
        ("maxUnreadBytes", {"device": 2**30 + 1}),
        ("maxProcessesUnseen", 513),
    )
    for field, value in looser:
        yield one(
            f"08-loosened-{field}",
            f"{field} requires less than the built-in policy.",
            "policy_loosened",
            **{field: value},
        )
    yield one("08-field-unknown", "The policy has an unknown field.", "policy_unknown_field", bypass=True)
    yield one(
        "08-field-in-another-spelling",
        "A known field is spelled differently.",
        "policy_unknown_field",
        allow_debug=True,
    )
    whole = json.dumps(built_in).encode()
    for name, old, new in (
        ("field-twice", b'"allowDebug": false', b'"allowDebug": false, "allowDebug": true'),
        ("age-nan", b'"maxEvidenceAgeSeconds": 120', b'"maxEvidenceAgeSeconds": NaN'),
        ("age-infinite", b'"maxEvidenceAgeSeconds": 120', b'"maxEvidenceAgeSeconds": 1e999'),
        ("age-as-text", b'"maxEvidenceAgeSeconds": 120', b'"maxEvidenceAgeSeconds": "120"'),
        ("debug-as-number", b'"allowDebug": false', b'"allowDebug": 0'),
        ("control-unknown", b'"no_core"', b'"no_such"'),
        ("tier-unknown", b'"software"', b'"trusted"'),
        ("field-missing", b'"version": 2, ', b""),
    ):
        yield one(f"08-{name}", "The policy does not match its schema.", "policy_invalid", text=whole.replace(old, new))
    yield _case(
        "08-policy-over-the-limit",
        "policy",
        "The policy is longer than 64 KiB.",
        "policy",
        "policy_invalid",
        files={"policy.json": whole},
        floor=1,
        pad=65_536,
    )


def challenges() -> Iterator[Case]:
    """9, 34: challenges that the attester refuses."""
    run, key = signing("run"), public(signing("run")).hex()
    honest_one = sign_challenge(honest.challenge(), run)

    def one(name: str, what: str, *codes: str, envelope: Json) -> Case:
        return _case(
            name, "challenge", what, "challenge" if codes else "", *codes, envelope=envelope, run_key=key, run_id=RUN
        )

    yield one("00-honest-challenge", "The runner's challenge.", envelope=honest_one)
    yield one(
        "09-challenge-by-a-stranger",
        "Somebody else sends the challenge.",
        "challenge_invalid",
        envelope=sign_challenge(honest.challenge(), signing("stranger")),
    )
    yield one(
        "09-challenge-of-another-run",
        "The challenge belongs to another run.",
        "run_mismatch",
        envelope=sign_challenge(honest.challenge(run_id="run-2"), run),
    )
    body = base64.b64decode(honest_one["payload"]).replace(b"a buyer's text", b"a seller's text")
    changed = {**honest_one, "payload": base64.b64encode(body).decode()}
    yield one(
        "09-challenge-changed", "The challenge is changed after it was signed.", "challenge_invalid", envelope=changed
    )


def delegations() -> Iterator[Case]:
    """15, 26: delegations that have expired, are not valid yet, or are somebody else's."""
    issued = datetime.fromtimestamp(NOW, UTC)

    def one(name: str, what: str, *codes: str, minutes: int = 1, by: str = "operator", run_id: str = RUN) -> Case:
        envelope = delegate(
            signing(by), public(signing("run")), run_id=run_id, plan_digest=digest("plan"), seconds=3600, now=issued
        )
        return _case(
            name,
            "delegation",
            what,
            "receipt" if codes else "",
            *codes,
            envelope=envelope,
            operator=public(signing("operator")).hex(),
            run_id=RUN,
            plan=digest("plan"),
            at=(issued + timedelta(minutes=minutes)).isoformat(),
        )

    yield one("00-honest-delegation", "The operator's delegation, in time.")
    yield one("15-delegation-expired", "The delegation to the run's key has expired.", "delegation_expired", minutes=61)
    yield one("15-delegation-not-yet-valid", "The delegation is dated in the future.", "delegation_expired", minutes=-1)
    yield one("26-delegation-by-a-stranger", "Somebody else delegates.", "envelope_signer_unknown", by="stranger")
    yield one(
        "26-delegation-of-another-run", "The delegation is for another run.", "delegation_other_run", run_id="run-2"
    )


def releases() -> Iterator[Case]:
    """11, 12: releases before a result, on another run's result, and a second one."""

    def one(name: str, what: str, *codes: str, result: Any, previous: Any = ()) -> Case:
        return _case(
            name, "release", what, "release" if codes else "", *codes, result=result, run_id=RUN, previous=previous
        )

    rejected = honest.result(status="contraindicated", cnf=None)
    yield one("00-honest-decision", "One release on one accepted result.", result=honest.result())
    yield one("11-no-result", "A release is requested before there is a result.", "release_before_result", result=None)
    yield one(
        "11-rejected-result", "A release is requested on rejected evidence.", "release_before_result", result=rejected
    )
    yield one(
        "11-rejected-result-with-a-key",
        "Rejected evidence still names a key.",
        "release_before_result",
        result=msgspec.structs.replace(rejected, cnf=honest.result().cnf),
    )
    yield one(
        "11-no-evidence",
        "There was no evidence at all.",
        "release_before_result",
        result=honest.result(status="none", cnf=None),
    )
    yield one(
        "11-result-of-another-run",
        "The result belongs to another run.",
        "release_other_result",
        result=honest.result(run_id="run-2"),
    )
    yield one(
        "12-second-release",
        "A second release is requested on one result.",
        "release_repeated",
        result=honest.result(),
        previous=[honest.release()],
    )


def _sealed(payload: bytes, *keys: Ed25519PrivateKey, payload_type: str = PAYLOAD_TYPE) -> Json:
    return seal_envelope(payload, payload_type, *(keys or (signing("run"),)))


def envelopes() -> Iterator[Case]:
    """25: DSSE envelopes and in-toto statements that exploit lenient parsers."""
    receipt = release_receipt(honest.release(), signing("run"))
    body = canonical(statement(RELEASE, {"package": digest("package")}, msgspec.to_builtins(honest.release())))
    text = canonical(receipt)
    twice = {**receipt, "signatures": [*receipt["signatures"], {**receipt["signatures"][0], "keyid": "0" * 64}]}
    same = {**receipt, "signatures": [*receipt["signatures"], receipt["signatures"][0]]}

    def one(name: str, what: str, *codes: str, data: bytes, signers: tuple[str, ...] = ("run",)) -> Case:
        return _case(
            name,
            "envelope",
            what,
            "receipt" if codes else "",
            *codes,
            files={"envelope.json": data},
            predicate=RELEASE,
            publics=[public(signing(name)).hex() for name in signers],
        )

    yield one("00-honest-envelope", "A release receipt.", data=text)
    for name, what, code, envelope in (
        ("one-key-under-two-names", "One key signs under two key ids.", "envelope_keys_not_distinct", twice),
        ("one-name-twice", "One signature is listed twice.", "envelope_malformed", same),
        (
            "payload-type-exchanged",
            "The payload type is exchanged.",
            "envelope_payload_type",
            {**receipt, "payloadType": "application/json"},
        ),
        (
            "payload-type-signed-over",
            "Another payload type is signed.",
            "envelope_payload_type",
            _sealed(body, payload_type="application/json"),
        ),
        ("field-more", "The envelope has an additional field.", "envelope_malformed", {**receipt, "verified": True}),
        ("no-signature", "The envelope has no signature.", "envelope_malformed", {**receipt, "signatures": []}),
        (
            "signer-unknown",
            "A stranger signs too.",
            "envelope_signer_unknown",
            countersign(receipt, signing("stranger")),
        ),
        (
            "signature-of-another",
            "The signature belongs to another envelope.",
            "envelope_signature_invalid",
            {**receipt, "signatures": _sealed(body)["signatures"]},
        ),
        (
            "base64-spelt-differently",
            "The payload is base64 in another spelling.",
            "envelope_malformed",
            {**receipt, "payload": receipt["payload"] + "\n"},
        ),
    ):
        yield one(f"25-{name}", what, code, data=canonical(envelope))
    yield one(
        "25-one-key-for-two",
        "Two signatures of one key are presented as those of two signers.",
        "envelope_keys_not_distinct",
        data=canonical(twice),
        signers=("run", "attester"),
    )
    for name, what, payload in (
        (
            "key-twice-in-the-statement",
            "A signed statement repeats a key.",
            body.replace(b'"predicateType":', b'"_type":"x","predicateType":'),
        ),
        ("nan-in-the-statement", "A signed statement contains NaN.", body.replace(b'"' + RUN.encode() + b'"', b"NaN")),
        (
            "infinity-in-the-statement",
            "A signed statement contains a number that overflows to infinity.",
            body.replace(b'"' + RUN.encode() + b'"', b"1e999"),
        ),
        (
            "field-more-in-the-statement",
            "A signed statement has an additional field.",
            body.replace(b'"predicateType":', b'"more":1,"predicateType":'),
        ),
        ("no-json", "The signed payload is not JSON.", b"\x00"),
        ("utf-16", "The signed statement is in UTF-16.", body.decode().encode("utf-16")),
    ):
        yield one(f"25-{name}", what, "statement_malformed", data=canonical(_sealed(payload)))
    for name, what, code, data in (
        (
            "key-twice-in-the-envelope",
            "The envelope's text repeats a key.",
            "json_duplicate_key",
            text.replace(b'"payloadType":', b'"payload":"","payloadType":'),
        ),
        (
            "nan-in-the-envelope",
            "The envelope's text contains NaN.",
            "json_not_finite",
            text.replace(b'"signatures":', b'"x":NaN,"signatures":'),
        ),
        ("envelope-no-json", "The envelope's text is not JSON.", "json_invalid", text[:-1]),
    ):
        yield one(f"25-{name}", what, code, data=data)


def zeroizations() -> Iterator[Case]:
    """26, 27: receipts of a wipe that are forged, replayed, or prove nothing."""
    key = public(signing("attester")).hex()
    proof = honest.zeroization()

    def one(
        name: str,
        what: str,
        *codes: str,
        made: Zeroization = proof,
        envelope: Json | None = None,
        expected: Expected | None = None,
    ) -> Case:
        sealed = zeroization_receipt(made, signing("attester")) if envelope is None else envelope
        return _case(
            name,
            "zeroization",
            what,
            "zeroization" if codes else "",
            *codes,
            envelope=sealed,
            attester=key,
            run_id=RUN,
            manifest=proof.manifest_sha256,
            nonce=proof.nonce_sha256,
            expected=expected or honest.expected_wipe(),
        )

    yield one("00-honest-zeroization", "A receipt that proves the wipe.")
    whole = zeroization_receipt(proof, signing("attester"))
    payload = base64.b64decode(whole["payload"])
    edited = payload.replace(b'"scratch_empty":true', b'"scratch_empty":false')
    for name, what, code, envelope in (
        (
            "receipt-by-a-stranger",
            "Somebody else signs the receipt.",
            "envelope_signer_unknown",
            zeroization_receipt(proof, signing("stranger")),
        ),
        (
            "receipt-in-the-attesters-name",
            "A stranger signs under the attester's key id.",
            "envelope_signature_invalid",
            {
                **whole,
                "signatures": [
                    {
                        **zeroization_receipt(proof, signing("stranger"))["signatures"][0],
                        "keyid": honest.name_of(signing("attester")),
                    }
                ],
            },
        ),
        (
            "receipt-changed",
            "The receipt is changed after it was signed.",
            "envelope_signature_invalid",
            {**whole, "payload": base64.b64encode(edited).decode()},
        ),
        (
            "release-as-a-receipt",
            "Another signed statement is presented in its place.",
            "predicate_type",
            release_receipt(honest.release(), signing("attester")),
        ),
        (
            "receipt-with-fields-of-its-own",
            "A signed receipt has an additional field.",
            "predicate_malformed",
            _sealed(
                canonical(statement(ZEROIZATION, subjects_of(proof), {**msgspec.to_builtins(proof), "fine": True})),
                signing("attester"),
            ),
        ),
        ("no-receipt", "There is no receipt.", "envelope_malformed", {}),
    ):
        yield one(f"26-{name}", what, code, envelope=envelope)
    for name, change in (
        ("run", {"run_id": "run-2"}),
        ("package", {"manifest_sha256": digest("another")}),
        ("challenge", {"nonce_sha256": digest("another")}),
    ):
        yield one(
            f"26-receipt-of-another-{name}",
            f"A receipt of another {name} is replayed.",
            "receipt_other_run",
            made=honest.zeroization(**change),
        )
    yield from _contradictory(one)
    yield from _unproven(one)


def _forged(changed: Json, subjects: Json | None = None) -> Json:
    """A receipt of any content, signed by the attester."""
    proof = honest.zeroization()
    body = {**msgspec.to_builtins(proof), **changed}
    return _sealed(canonical(statement(ZEROIZATION, subjects or subjects_of(proof), body)), signing("attester"))


def _contradictory(one: Any) -> Iterator[Case]:
    """26: statements that an honest worker of this run cannot make; one vector for each field."""
    proof = honest.zeroization()
    plain = msgspec.to_builtins(proof)
    for name, changed in (
        ("segment-raw", {"segment": "raw"}),
        ("negative-count", {"deleted_files_held": -1}),
        (
            "negative-hits",
            {"after": {**plain["after"], "trainer": {**plain["after"]["trainer"], "hits": {"adapter": -1}}}},
        ),
        ("digest-no-digest", {"adapter_sha256": "none"}),
        ("time-no-time", {"began": "earlier"}),
        (
            "scan-state-of-its-own",
            {"after": {**plain["after"], "trainer": {**plain["after"]["trainer"], "state": "fine"}}},
        ),
        (
            "scan-with-fields-of-its-own",
            {"after": {**plain["after"], "trainer": {**plain["after"]["trainer"], "x": 1}}},
        ),
        ("flag-as-text", {"scratch_empty": "yes"}),
        ("device-with-fields-of-its-own", {"device": {**plain["device"], "x": 1}}),
    ):
        what = f"A signed receipt is not of the published form ({name.replace('-', ' ')})."
        yield one(f"26-{name}", what, "predicate_malformed", envelope=_forged(changed))
    yield one(
        "26-subjects-of-another-receipt",
        "The subjects of the statement are not those of its content.",
        "predicate_malformed",
        envelope=_forged({}, {**subjects_of(proof), "nonce": digest("another")}),
    )
    stray = honest.scan({"adapter": 0})
    doubled = [*proof.processes, msgspec.structs.replace(proof.processes[0], pid=99)]
    cat = msgspec.structs.replace(proof.processes[0], role="cat")
    trainer = proof.after["trainer"]
    for name, what, codes, change in (
        ("another-adapter", "It names another adapter than the log.", ("other_log",), {"adapter_sha256": digest("x")}),
        ("no-adapter", "It names no adapter, and the log has one.", ("other_log",), {"adapter_sha256": None}),
        ("another-head", "It links to another place in the log.", ("other_log",), {"pod_head": digest("x")}),
        (
            "sanitization",
            "It claims a sanitization that nobody did.",
            ("constants",),
            {"sanitization": "NIST SP 800-88 Purge"},
        ),
        ("no-methods", "It names no methods.", ("constants", "incomplete"), {"methods": []}),
        ("methods-of-its-own", "It names other methods.", ("constants", "incomplete"), {"methods": ["shredded"]}),
        (
            "target-x-before",
            "A target called x was scanned before.",
            ("targets", "incomplete", "short"),
            {"before": {**proof.before, "x": stray}},
        ),
        (
            "target-x-after",
            "A target called x was scanned after.",
            ("targets", "incomplete", "short"),
            {"after": {**proof.after, "x": stray}},
        ),
        (
            "process-cat",
            "A process called cat is listed.",
            ("roles", "incomplete"),
            {"processes": [cat, *proof.processes[1:]]},
        ),
        ("process-twice", "One process is listed twice.", ("roles",), {"processes": doubled}),
        ("ended-before-it-began", "The wipe ended before it began.", ("times",), {"began": "2026-05-17T12:00:00.001Z"}),
        (
            "began-before-the-launch",
            "The wipe began before the launch.",
            ("times",),
            {"began": "2026-05-17T11:54:59.999Z"},
        ),
        (
            "ended-after-its-event",
            "The wipe ended after its receipt was logged.",
            ("times",),
            {"ended": "2026-05-17T12:05:00.001Z"},
        ),
        (
            "hits-nowhere",
            "Hits are counted by class and not by place.",
            ("counts", "hits"),
            {"after": {**proof.after, "trainer": honest.scan({**trainer.hits, "adapter": 1}, where={})}},
        ),
        (
            "class-of-its-own",
            "A class was searched that no run has.",
            ("counts", "incomplete"),
            {"after": {**proof.after, "trainer": honest.scan({**trainer.hits, "other": 0})}},
        ),
        (
            "bytes-without-a-region",
            "Bytes are left unread in no area.",
            ("counts",),
            {"after": {**proof.after, "trainer": honest.scan(trainer.hits, skipped={"guard": Area(0, 4096)})}},
        ),
        (
            "descriptors-larger-than-they-are",
            "More memory is left to its descriptors than they hold.",
            ("counts",),
            {"after": {**proof.after, "trainer": honest.scan(trainer.hits, skipped={"descriptor": Area(1, 10**9)})}},
        ),
        (
            "figures-of-no-device",
            "Figures are given for no device.",
            ("counts_device",),
            {"device": Device(present=False, bytes_after=0)},
        ),
        (
            "baseline-that-is-none",
            "The device is said to be at a baseline that its figures exceed.",
            ("counts_device",),
            {"device": Device(present=True, at_baseline=True, compute_processes=0, bytes_before=1, bytes_after=2)},
        ),
    ):
        named = (f"zeroization_{'device_missing' if code == 'counts_device' else code}" for code in codes)
        yield one(f"26-{name}", what, *named, made=honest.zeroization(**change))
    yield one(
        "26-device-hidden",
        "The launch named an accelerator, and the receipt has none.",
        "zeroization_device_missing",
        expected=honest.expected_wipe(gpu=True),
    )


def _unproven(one: Any) -> Iterator[Case]:
    """27: what an honest worker may report, and what then is not proven."""
    proof = honest.zeroization()
    before, after = proof.before, proof.after
    none = after["trainer"].hits
    alive = [*proof.processes[:2], msgspec.structs.replace(proof.processes[2], gone=False), proof.processes[3]]
    spared = Unread(why="unreadable", kind="anonymous", bytes=4096, permissions="rw-p")

    def then(target: str, **changes: Any) -> Json:
        return {"after": {**after, target: msgspec.structs.replace(after[target], **changes)}}

    def first(target: str, **changes: Any) -> Json:
        return {"before": {**before, target: msgspec.structs.replace(before[target], **changes)}}

    def without(scans: Json, target: str) -> Json:
        return {name: scan for name, scan in scans.items() if name != target}

    for target in TARGETS:
        words = target.replace(" ", "-")
        yield one(
            f"27-{words}-not-scanned-after",
            f"The {target} was not scanned after the wipe.",
            "zeroization_incomplete",
            made=honest.zeroization(after=without(after, target)),
        )
        controlled = bool(TARGETS[target].control)
        missing = (
            ("zeroization_no_control",) if target in ("keyproc open", "keyproc seal", "trainer", "payload") else ()
        )
        yield one(
            f"27-{words}-not-scanned-before",
            f"The {target} was not scanned before the wipe.",
            "zeroization_incomplete",
            *missing,
            made=honest.zeroization(before=without(before, target)),
        )
        yield one(
            f"27-{words}-hardly-read",
            f"Of the {target} only a little was read.",
            "zeroization_short",
            made=honest.zeroization(**then(target, bytes_read=4096)),
        )
        if controlled:
            silent = dict.fromkeys(before[target].hits, 0)
            yield one(
                f"27-{words}-without-control",
                f"Before the wipe, nothing was found in the {target}.",
                "zeroization_no_control",
                made=honest.zeroization(**first(target, hits=silent, where={})),
            )
    for role in range(len(proof.processes)):
        words = proof.processes[role].role.replace(" ", "-")
        yield one(
            f"27-{words}-not-listed",
            f"The {proof.processes[role].role} is not among the processes that ended.",
            "zeroization_incomplete",
            made=honest.zeroization(processes=[*proof.processes[:role], *proof.processes[role + 1 :]]),
        )
    for name, what, codes, change in (
        ("no-control-at-all", "Nothing was searched before the wipe.", ("incomplete", "no_control"), {"before": {}}),
        (
            "keys-not-looked-for",
            "Keys were not searched after the wipe.",
            ("incomplete",),
            then("trainer", hits={name: 0 for name in none if "key" not in name}),
        ),
        (
            "secrets-found",
            "Secrets were found after the wipe.",
            ("hits",),
            then("trainer", hits={**none, "adapter": 1}, where={"heap": 1}),
        ),
        (
            "secrets-in-the-scanner",
            "Half a key was found in the scanner.",
            ("hits",),
            then("scanner", hits={**none, "content_key_half": 1}, where={"stack": 1}),
        ),
        (
            "memory-not-read",
            "Memory outside the allowed classes was not read.",
            ("unread",),
            then("trainer", unread_other=[spared]),
        ),
        (
            "memory-not-read-before",
            "Memory was not read before the wipe.",
            ("unread",),
            first("trainer", unread_other=[spared]),
        ),
        (
            "class-of-its-own-skipped",
            "Memory of a class that may not be skipped was skipped.",
            ("unread",),
            then("trainer", skipped={"heap": Area(1, 4096)}),
        ),
        (
            "secret-memory-skipped",
            "Memory that nobody can read was skipped.",
            ("unread",),
            then("trainer", skipped={"memfd_secret": Area(1, 4096)}),
        ),
        (
            "device-memory-without-a-device",
            "10 GB were skipped as a device's, and there is none.",
            ("unread",),
            then("trainer", skipped={"device": Area(1, 10**10)}),
        ),
        (
            "more-skipped-than-allowed",
            "More was skipped of a class than the policy allows.",
            ("unread",),
            then("trainer", skipped={"vvar": Area(1, 10**6)}),
        ),
        (
            "target-gone",
            "A process was gone before it was scanned.",
            ("unread", "short"),
            then("trainer", state="gone", bytes_read=0, regions_read=0),
        ),
        ("few-areas-read", "Only a few areas of a process were read.", ("short",), then("trainer", regions_read=3)),
        (
            "payload-without-its-adapter",
            "Fewer bytes of the payload were read than the adapter has.",
            ("short",),
            first("payload", bytes_read=honest.ADAPTER_SIZE),
        ),
        (
            "payload-without-descriptors",
            "No descriptor of the payload was read.",
            ("short",),
            then("payload", descriptors_read=0),
        ),
        ("processes-unseen", "Thousands of processes were not seen.", ("unseen",), {"processes_unseen": 4000}),
        ("process-alive", "A process that held secrets is still running.", ("process_alive",), {"processes": alive}),
        ("scratch-filled", "The scratch folder is not empty.", ("scratch",), {"scratch_empty": False}),
        ("deleted-file-held", "A deleted file is still open.", ("deleted_files",), {"deleted_files_held": 1}),
        (
            "abandoned",
            "Only what the supervisor could wipe was wiped.",
            ("incomplete",),
            {"methods": list(ABANDONED_METHODS)},
        ),
        (
            "device-not-back",
            "The accelerator's memory is not back at its baseline.",
            ("device",),
            {"device": Device(present=True, at_baseline=False, compute_processes=1, bytes_before=1, bytes_after=2)},
        ),
        ("device-silent", "The accelerator's driver reports nothing.", ("device",), {"device": Device(present=True)}),
        (
            "device-in-use",
            "A process still computes on the accelerator.",
            ("device",),
            {"device": Device(present=True, at_baseline=True, compute_processes=1, bytes_before=2, bytes_after=2)},
        ),
    ):
        yield one(f"27-{name}", what, *(f"zeroization_{code}" for code in codes), made=honest.zeroization(**change))
    yield one(
        "27-nothing-sealed",
        "The segment failed before it sealed an adapter, and claims the wipe.",
        "zeroization_incomplete",
        made=honest.zeroization(adapter_sha256=None),
        expected=honest.expected_wipe(adapter_sha256=None, adapter_size=0),
    )


def signed_documents() -> Iterator[Case]:
    """26: receipts of a release, of the log's end and of a run: one vector for each field that is not of its form."""
    row = {"id": RUN}
    closing = Closing(run_id=RUN, pod_head=digest("pod head"), runner_head=digest("runner head"), closed=honest.TIME)
    run = RunReceipt(
        run_id=RUN,
        row_sha256=digest_of(row),
        plan_digest=digest("plan"),
        manifest_sha256=digest("manifest"),
        adapters={"raw": digest("raw adapter")},
        series={"raw": digest("raw series")},
        runner_head=digest("runner head"),
        pod_head=digest("pod head"),
        delegation_sha256=digest("delegation"),
        bundle_sha256=digest("bundle"),
        challenge=None,
        finished=honest.TIME,
    )
    documents: tuple[tuple[str, str, str, msgspec.Struct, Json], ...] = (
        ("release", "run", RELEASE, honest.release(), _subjects(release_receipt(honest.release(), signing("run")))),
        ("closing", "attester", CLOSING, closing, _subjects(closing_receipt(closing, signing("attester")))),
        ("run", "run", RUN_TYPE, run, run_subjects(run)),
    )
    for document, signer, kind, body, subjects in documents:
        plain = msgspec.to_builtins(body)

        def one(
            name: str, what: str, *codes: str, content: Json, about: Json = subjects, document: str = document,
            signer: str = signer, kind: str = kind,
        ) -> Case:  # fmt: skip
            return _case(
                name, "signed", what, "receipt" if codes else "", *codes, document=document, run_id=RUN, row=row,
                envelope=_sealed(canonical(statement(kind, about, content)), signing(signer)),
                key=public(signing(signer)).hex(),
            )  # fmt: skip

        yield one(f"00-honest-{document}-receipt", f"A receipt ({document}).", content=plain)
        for field in plain:
            what = f"In a signed receipt ({document}), {field} is not of its form."
            name = f"26-{document}-{field.replace('_', '-')}"
            yield one(
                name, what, "predicate_malformed", content={**plain, field: 7 if field == "challenge" else "../x"}
            )
        yield one(f"26-{document}-more", "It has another field.", "predicate_malformed", content={**plain, "more": 1})
        about = {**subjects, "pod-log" if "pod-log" in subjects else "package": digest("another")}
        what = "The subjects of the statement are not those of its content."
        yield one(f"26-{document}-subjects", what, "predicate_malformed", content=plain, about=about)
        changed = msgspec.to_builtins(msgspec.structs.replace(body, run_id="run-2"))
        yield one(f"26-{document}-of-another-run", "It is of another run.", "receipt_other_run", content=changed)


def _subjects(envelope: Json) -> Json:
    named = json.loads(base64.b64decode(envelope["payload"]))["subject"]
    return {one["name"]: one["digest"]["sha256"] for one in named}


def cases() -> Iterator[Case]:
    """Every vector about decisions and receipts."""
    yield from policies()
    yield from challenges()
    yield from delegations()
    yield from releases()
    yield from envelopes()
    yield from zeroizations()
    yield from signed_documents()
