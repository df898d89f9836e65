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
from engine.attestation.claims import Scalar
from engine.attestation.dsse import countersign, seal_envelope
from engine.attestation.receipts import RELEASE, ZEROIZATION, delegate, release_receipt
from engine.attestation.statements import PAYLOAD_TYPE, statement
from engine.attestation.zeroization import Area, Device, ProcessEnd, Zeroization, zeroization_receipt
from engine.system.resources import data_path
from engine.wire import canonical
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
    yield one("07-older-version", "The policy has an older version than the built-in one.", "policy_older", floor=2)
    yield one("07-version-zero", "The policy has a version below the first.", "policy_invalid", version=0)
    looser: tuple[tuple[str, Any], ...] = (
        ("tiers", ["software", "snp"]),
        ("requiredControls", built_in["requiredControls"][1:]),
        ("maxEvidenceAgeSeconds", 121),
        ("maxClockSkewSeconds", 301),
        ("allowDebug", True),
        ("sealedAdapter", False),
        ("positiveControl", False),
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
        ("field-missing", b'"version": 1, ', b""),
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

    def one(name: str, what: str, *codes: str, made: Zeroization = proof, envelope: Json | None = None) -> Case:
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
                canonical(statement(ZEROIZATION, {}, {**msgspec.to_builtins(proof), "fine": True})), signing("attester")
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
    yield from _unproven(one)


def _unproven(one: Any) -> Iterator[Case]:
    proof = honest.zeroization()
    none = dict.fromkeys(honest.CLASSES, 0)
    silent = {"key": honest.scan(dict.fromkeys(honest.KEYS, 0))}
    narrow = {"trainer": honest.scan({"canary_row": 39, "weights": 9, "adapter": 4, "moments": 2})}
    hit = {"trainer": honest.scan({**none, "adapter": 1})}
    alive = [ProcessEnd(role="trainer", pid=11, start_time=99, gone=False)]
    spared: dict[str, Scalar] = {"class": "anonymous", "bytes": 4096}
    for name, what, codes, change in (
        (
            "no-control-for-the-keys",
            "No key was found before the wipe.",
            ("zeroization_no_control",),
            {"before": {**proof.before, **silent}},
        ),
        (
            "no-control-at-all",
            "Nothing was searched before the wipe.",
            ("zeroization_incomplete", "zeroization_no_control"),
            {"before": {}},
        ),
        ("keys-not-looked-for", "Keys were not searched.", ("zeroization_incomplete",), {"before": narrow}),
        (
            "no-second-look",
            "The trainer was not scanned after the wipe.",
            ("zeroization_incomplete",),
            {"after": {"key": honest.scan(none)}},
        ),
        (
            "secrets-found",
            "Secrets were found after the wipe.",
            ("zeroization_hits",),
            {"after": {**proof.after, **hit}},
        ),
        (
            "hits-cancelled",
            "A negative count hides a hit.",
            ("zeroization_incomplete", "zeroization_hits"),
            {"after": {**proof.after, **hit, "supervisor": honest.scan({**none, "adapter": -1})}},
        ),
        (
            "memory-not-read",
            "Memory outside the allowed classes was not read.",
            ("zeroization_unread",),
            {"after": {**proof.after, "trainer": honest.scan(none, unread_other=[spared])}},
        ),
        (
            "class-of-its-own-skipped",
            "Memory of a class that may not be skipped was skipped.",
            ("zeroization_unread",),
            {"after": {**proof.after, "trainer": honest.scan(none, skipped={"heap": Area(1, 4096)})}},
        ),
        (
            "process-alive",
            "A process that held secrets is still running.",
            ("zeroization_process_alive",),
            {"processes": alive},
        ),
        ("scratch-filled", "The scratch folder is not empty.", ("zeroization_scratch",), {"scratch_empty": False}),
        (
            "deleted-file-held",
            "A deleted file is still open.",
            ("zeroization_deleted_files",),
            {"deleted_files_held": 1},
        ),
        (
            "device-not-back",
            "The accelerator's memory is not back at its baseline.",
            ("zeroization_device",),
            {"device": Device(present=True, at_baseline=False, compute_processes=1)},
        ),
        (
            "device-silent",
            "The accelerator's driver reports nothing.",
            ("zeroization_device",),
            {"device": Device(present=True)},
        ),
    ):
        yield one(f"27-{name}", what, *codes, made=honest.zeroization(**change))


def cases() -> Iterator[Case]:
    """Every vector about decisions and receipts."""
    yield from policies()
    yield from challenges()
    yield from delegations()
    yield from releases()
    yield from envelopes()
    yield from zeroizations()
