"""Vectors about evidence: refused by the appraisal, or refused before it because the token is not valid."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterator
from typing import Any

import msgspec

from engine.attestation.claims import Observed
from engine.attestation.policy import policy_digest
from engine.wire import canonical, parse
from tests.vectors import honest
from tests.vectors.case import Case
from tests.vectors.honest import NOW, SECONDS, digest, receiving, seed, signing

Edits = dict[str, Any]
HARDWARE: Edits = {"tier": "snp", "not_a_hardware_tee_claim": False, "submods": {"cpu": {"report": "AAAA"}}}


def _case(name: str, what: str, stage: str, *codes: str, token: str | None = None, **changes: Any) -> Case:
    given: dict[str, Any] = {
        "token": honest.token() if token is None else token,
        "reference": honest.expectations(),
        "policy": honest.policy(),
        "nonces": honest.ledger(),
        "clock": {"boot": honest.BOOT, "seconds": SECONDS, "now": NOW + 1},
    }
    given |= changes
    return Case(name=name, kind="evidence", what=what, given=msgspec.to_builtins(given), stage=stage, codes=codes)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _sections() -> tuple[str, str, str]:
    header, payload, signature = honest.token().split(".")
    return header, payload, signature


def _decoded(section: str) -> bytes:
    return base64.urlsafe_b64decode(section + "=" * (-len(section) % 4))


def resigned(header: Edits | None = None, payload: Edits | bytes | None = None, signer: str = "attester") -> str:
    """The honest token with header or payload changed, and signed again with Ed25519 like a normal one."""
    parts = _sections()
    top = {**parse(_decoded(parts[0])), **(header or {})}
    body = payload if isinstance(payload, bytes) else canonical({**parse(_decoded(parts[1])), **(payload or {})})
    signed = f"{_text(canonical({k: v for k, v in top.items() if v is not None}))}.{_text(body)}"
    return f"{signed}.{_text(signing(signer).sign(signed.encode()))}"


def _under_mac(alg: str, key: bytes) -> str:
    parts = _sections()
    top = canonical({**parse(_decoded(parts[0])), "alg": alg})
    signed = f"{_text(top)}.{parts[1]}"
    return f"{signed}.{_text(hmac.digest(key, signed.encode(), alg.replace('HS', 'sha')))}"


def freshness() -> Iterator[Case]:
    """1 to 4, 15, 31: replays, nonces, times."""
    flipped = bytes([seed("nonce")[0] ^ 1]) + seed("nonce")[1:]
    clock = {"boot": honest.BOOT, "seconds": SECONDS, "now": NOW + 1}
    late = {**clock, "seconds": SECONDS + 121}
    yield _case(
        "01-nonce-used-before",
        "Evidence that was accepted once is sent again.",
        "appraisal",
        "nonce_replayed",
        nonces=honest.ledger(used=True),
    )
    yield _case(
        "01-same-token-twice", "The same token is sent twice in one run.", "appraisal", "nonce_replayed", times=2
    )
    yield _case(
        "02-no-nonce-issued",
        "Evidence is sent without a challenge.",
        "appraisal",
        "nonce_unknown",
        nonces={"version": 1, "nonces": []},
    )
    yield _case(
        "02-nonce-with-one-bit-flipped",
        "The nonce differs from the issued one in one bit.",
        "appraisal",
        "nonce_unknown",
        nonces=honest.ledger(flipped),
    )
    yield _case(
        "03-nonce-121-seconds-old", "The answer arrives after 121 seconds.", "appraisal", "nonce_expired", clock=late
    )
    yield _case(
        "03-nonce-from-before-a-reboot",
        "The nonce was issued before a reboot.",
        "appraisal",
        "nonce_expired",
        clock={**clock, "boot": "boot-2"},
    )
    yield _case(
        "03-nonce-from-the-future",
        "The record has the nonce issued in the future.",
        "appraisal",
        "nonce_expired",
        nonces=honest.ledger(at=SECONDS + 60),
    )
    yield _case(
        "04-nonce-of-another-run",
        "The nonce was issued to another run.",
        "appraisal",
        "nonce_other_run",
        nonces=honest.ledger(run_id="run-2"),
    )
    other = honest.token(honest.claims(honest.challenge(run_id="run-2")))
    yield _case(
        "04-evidence-of-another-run",
        "Evidence of another run, with that run's nonce.",
        "appraisal",
        "nonce_other_run",
        "run_mismatch",
        token=other,
        nonces=honest.ledger(run_id="run-2"),
    )
    yield _case(
        "15-evidence-expired",
        "The evidence is older than the policy and the clock skew allow.",
        "appraisal",
        "evidence_expired",
        clock={**clock, "now": NOW + 120 + 300 + 2},
    )
    yield _case(
        "15-own-expiry-past",
        "The token has expired by its own claim.",
        "appraisal",
        "evidence_expired",
        token=honest.token(exp=NOW + 1),
        clock={**clock, "now": NOW + 302},
    )
    yield _case(
        "15-lifetime-stretched",
        "The attester gives its token a long lifetime.",
        "appraisal",
        "evidence_expired",
        token=honest.token(exp=NOW + 10**6),
        clock={**clock, "now": NOW + 422},
    )
    yield _case(
        "15-not-yet-valid",
        "The evidence is dated in the future.",
        "appraisal",
        "evidence_not_yet_valid",
        clock={**clock, "now": NOW - 301},
    )
    yield _case(
        "15-expires-before-it-is-issued",
        "The token expires before it is issued.",
        "evidence",
        "evidence_claims",
        token=resigned(payload={"exp": NOW - 1}),
    )
    yield _case(
        "31-old-evidence-made-young",
        "The operator's clock is set back, so that old evidence looks recent.",
        "appraisal",
        "nonce_expired",
        clock={**late, "now": NOW + 1},
    )
    yield _case(
        "31-clock-back-by-an-hour",
        "The operator's clock is set back by an hour.",
        "appraisal",
        "evidence_not_yet_valid",
        clock={**clock, "now": NOW - 3600},
    )


def binding() -> Iterator[Case]:
    """5, 9, 10, 17, 19, 30, 34: evidence about something else than expected."""
    for part, code in (("bundle", "measurement"), ("lock", "lock"), ("environment", "environment")):
        measured = msgspec.structs.replace(honest.measurements(), **{part: digest("another")})
        yield _case(
            f"05-another-{part}",
            f"The worker runs with another {part}.",
            "appraisal",
            f"{code}_mismatch",
            token=honest.token(honest.claims(measurements=measured)),
        )
    lax = honest.policy(required_controls=(), max_evidence_age_seconds=3600)
    answered = honest.challenge(policy_digest=policy_digest(lax))
    yield _case(
        "09-evidence-under-a-laxer-policy",
        "The attester answers under its own policy.",
        "appraisal",
        "policy_mismatch",
        "enforcement_missing",
        token=honest.token(honest.claims(answered, enforcement={})),
    )
    observed = {**honest.claims().enforcement, "seccomp": Observed("absent")}
    yield _case(
        "09-required-control-absent",
        "A control that the operator's policy requires is absent.",
        "appraisal",
        "enforcement_missing",
        token=honest.token(enforcement=observed),
    )
    stranger = honest.public(receiving("stranger"))
    yield _case(
        "10-receiving-key-exchanged",
        "Another receiving key is put into valid claims.",
        "appraisal",
        "cnf_exchanged",
        token=honest.token(cnf=stranger),
    )
    yield _case(
        "10-receiving-key-not-announced",
        "The receiving key is not the one that was announced.",
        "appraisal",
        "cnf_exchanged",
        token=honest.token(honest.claims(cnf=stranger)),
        reference=honest.expectations(cnf=honest.public(receiving("cnf"))),
    )
    yield _case(
        "10-receiving-key-without-secrets",
        "The receiving key is a point whose shared secret is known.",
        "release",
        "cnf_invalid",
        token=honest.token(honest.claims(cnf=bytes(32))),
    )
    yield _case(
        "10-another-part-exchanged",
        "Another claim is exchanged after the nonce object was computed.",
        "appraisal",
        "pod_mismatch",
        "nonce_object_mismatch",
        token=honest.token(pod_id="pod-2"),
    )
    for name, change, code in (
        ("plan", {"plan_digest": digest("another")}, "plan_mismatch"),
        ("package", {"manifest_digest": digest("another")}, "manifest_mismatch"),
        ("runner-log", {"runner_head": digest("another")}, "head_mismatch"),
    ):
        yield _case(
            f"09-another-{name}",
            f"The evidence is for another {name}.",
            "appraisal",
            code,
            token=honest.token(honest.claims(honest.challenge(**change))),
        )
    yield _case(
        "17-debug-mode",
        "The worker runs under a debugger.",
        "appraisal",
        "debug_enabled",
        token=honest.token(honest.claims(debug=True)),
    )
    yield _case(
        "17-debug-state-unknown",
        "The debug state is not a known value.",
        "evidence",
        "evidence_claims",
        token=resigned(payload={"dbgstat": "off"}),
    )
    yield _case(
        "19-another-gpu",
        "The evidence names another GPU.",
        "appraisal",
        "gpu_mismatch",
        token=honest.token(honest.claims(gpu_uuid="GPU-2")),
    )
    chain = {**HARDWARE, "tier": "nvidia-cc", "submods": {"gpu0": {"uuid": "GPU-1", "report": "AAAA", "chain": "x"}}}
    yield _case(
        "19-gpu-report-with-a-chain",
        "A GPU's report comes with a certificate chain.",
        "appraisal",
        "tier_unsupported",
        token=honest.token(**chain),
    )
    yield _case(
        "30-another-host-key",
        "The evidence names another SSH host key.",
        "appraisal",
        "host_key_mismatch",
        token=honest.token(honest.claims(ssh_host_key=digest("another"))),
    )
    yield _case(
        "30-another-allocation",
        "The evidence names another allocation.",
        "appraisal",
        "pod_mismatch",
        token=honest.token(honest.claims(pod_id="pod-2")),
    )
    for name, text in (("another", "another text"), ("no", None)):
        yield _case(
            f"34-{name}-challenge",
            f"The evidence answers {name} challenge text.",
            "appraisal",
            "challenge_mismatch",
            token=honest.token(honest.claims(honest.challenge(challenge=text))),
        )


def signatures() -> Iterator[Case]:
    """13, 14, 19: the signer and the algorithm."""
    header, payload, signature = _sections()
    none = _text(canonical({**parse(_decoded(header)), "alg": "none"}))
    attester = honest.public(signing("attester"))
    for name, what, token, code in (
        ("none", "`alg` is none and the signature empty.", f"{none}.{payload}.", "evidence_alg"),
        (
            "none-under-a-signature",
            "`alg` is none and the signature is kept.",
            f"{none}.{payload}.{signature}",
            "evidence_alg",
        ),
        (
            "hs256-with-the-public-key",
            "A MAC is keyed with the public key.",
            _under_mac("HS256", attester),
            "evidence_alg",
        ),
        (
            "hs512-with-the-public-key",
            "A longer MAC is keyed with the public key.",
            _under_mac("HS512", attester),
            "evidence_alg",
        ),
        ("missing", "There is no `alg`.", resigned({"alg": None}), "evidence_alg"),
        ("eddsa", "`alg` has the older name of the algorithm.", resigned({"alg": "EdDSA"}), "evidence_alg"),
        ("in-lower-case", "`alg` is in lower case.", resigned({"alg": "ed25519"}), "evidence_alg"),
        ("as-a-list", "`alg` is a list.", resigned({"alg": ["Ed25519"]}), "evidence_alg"),
        (
            "with-crit",
            "The header requires an extension.",
            resigned({"crit": ["b64"], "b64": False}),
            "evidence_malformed",
        ),
        ("with-another-type", "The token is typed as a plain JWT.", resigned({"typ": "JWT"}), "evidence_malformed"),
    ):
        yield _case(f"13-alg-{name}", what, "evidence", code, token=token)
    stranger = honest.public(signing("stranger"))
    own = {"attester_key": _text(stranger)}
    kid = honest.name_of(signing("stranger"))
    for name, what, token, code in (
        (
            "self-signed",
            "A stranger signs under its own key id.",
            resigned({"kid": kid}, own, "stranger"),
            "attester_key_unknown",
        ),
        (
            "borrowed-name",
            "A stranger signs under the attester's key id.",
            resigned(signer="stranger"),
            "signature_invalid",
        ),
        (
            "key-in-the-header",
            "The token contains the key to verify it with.",
            resigned({"jwk": {"kty": "OKP", "crv": "Ed25519", "x": _text(stranger)}}, signer="stranger"),
            "evidence_malformed",
        ),
        (
            "chain-in-the-header",
            "The token contains a self-signed certificate.",
            resigned({"x5c": ["AAAA"]}),
            "evidence_malformed",
        ),
        ("another-key-in-the-claims", "The claims name another signer.", resigned(payload=own), "attester_key_unknown"),
    ):
        yield _case(f"14-{name}", what, "evidence", code, token=token)
    yield _case(
        "14-hardware-root",
        "A report claims a vendor's root of trust.",
        "appraisal",
        "tier_unsupported",
        token=honest.token(**HARDWARE),
    )
    raw = bytearray(_decoded(signature))
    for bit in (0, 7, 8 * 63):
        changed = raw.copy()
        changed[bit // 8] ^= 1 << bit % 8
        yield _case(
            f"19-signature-bit-{bit}-flipped",
            "One bit of the signature is flipped.",
            "evidence",
            "signature_invalid",
            token=f"{header}.{payload}.{_text(bytes(changed))}",
        )


def documents() -> Iterator[Case]:
    """16, 18: claims beyond the tier; tokens cut, extended and overflowing."""
    for name, edits in (
        ("disclaimer-missing", {"not_a_hardware_tee_claim": False}),
        ("tier-without-a-report", {"tier": "snp", "not_a_hardware_tee_claim": False}),
        ("tier-beside-the-disclaimer", {"tier": "tdx"}),
        ("report-beside-the-disclaimer", {"tier": "snp", "submods": {"cpu": {"report": "AAAA"}}}),
    ):
        yield _case(
            f"16-{name}",
            "Software evidence claims a hardware tier.",
            "appraisal",
            "tier_overclaimed",
            token=honest.token(**edits),
        )
    yield _case(
        "16-tier-unknown",
        "An unknown tier comes with a report.",
        "appraisal",
        "tier_unsupported",
        token=honest.token(**{**HARDWARE, "tier": "enclave-9"}),
    )
    header, payload, signature = _sections()
    for name, token, code in (
        ("empty", "", "evidence_malformed"),
        ("in-the-header", header[:-3], "evidence_malformed"),
        ("after-the-header", f"{header}.", "evidence_malformed"),
        ("in-the-payload", f"{header}.{payload[:-40]}", "evidence_malformed"),
        ("before-the-signature", f"{header}.{payload}.", "signature_invalid"),
        ("in-the-signature", f"{header}.{payload}.{signature[:-4]}", "signature_invalid"),
        # No base64 has 4 n + 1 characters.
        (
            "payload-under-a-whole-signature",
            f"{header}.{payload[: len(payload) // 4 * 4 - 39]}.{signature}",
            "evidence_malformed",
        ),
    ):
        yield _case(f"18-cut-{name}", "The token is truncated.", "evidence", code, token=token)
    body = _decoded(payload)
    for name, token, code in (
        ("fourth-section", f"{header}.{payload}.{signature}.AAAA", "evidence_malformed"),
        ("after-the-signature", f"{header}.{payload}.{signature}AAAA", "signature_invalid"),
        ("line-end", f"{header}.{payload}.{signature}\n", "signature_invalid"),
        ("behind-the-claims", resigned(payload=body + b" "), "evidence_claims"),
        ("second-object", resigned(payload=body + b"{}"), "evidence_claims"),
    ):
        yield _case(
            f"18-trailing-{name}", "The token or its claims are followed by more bytes.", "evidence", code, token=token
        )
    yield _case(
        "18-token-over-the-limit", "The token is longer than 64 KiB.", "evidence", "evidence_too_large", pad=65_537
    )
    for name, old, new in (
        ("integer", b'"iat":1790000000', b'"iat":9223372036854775808'),
        ("long-integer", b'"iat":1790000000', b'"iat":' + b"9" * 5000),
        ("exponent", b'"iat":1790000000', b'"iat":1e999'),
        ("negative", b'"iat":1790000000', b'"iat":-1'),
        ("depth", b'"pid":7', b'"pid":' + b"[" * 4000 + b"]" * 4000),
    ):
        yield _case(
            f"18-overflow-{name}",
            "A number in the claims, or their depth, is too large.",
            "evidence",
            "evidence_claims",
            token=resigned(payload=body.replace(old, new)),
        )
    yield _case(
        "18-hardware-report-cut",
        "A hardware report is truncated.",
        "appraisal",
        "tier_unsupported",
        token=honest.token(**{**HARDWARE, "submods": {"cpu": {"report": "AA"}}}),
    )


def cases() -> Iterator[Case]:
    """Every vector about evidence; the first is honest."""
    yield _case("00-honest-evidence", "Honest evidence, in time.", "")
    yield from freshness()
    yield from binding()
    yield from signatures()
    yield from documents()
