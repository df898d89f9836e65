"""Verifies a public artifact offline: without a database, the network, or the machine that created it."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from engine.attestation.reasons import refusal
from engine.errors import GlasshouseError
from engine.records.artifact import Artifact, parse_artifact
from engine.records.proofs import MALFORMED, PROOFS, Case, NotApplicableError, NotCheckedError, Proof, UnknownError
from engine.records.trust import Anchors

ProofStatus = Literal["passed", "failed", "not_applicable", "not_checked", "unknown"]
_OF_SIGNATURES: Final = ("signer", "delegation", "run_receipt")


class Proven(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one proof: what was verified, or the code and sentences of what is wrong and what to do."""

    name: str
    status: ProofStatus
    reason: str = ""
    code: str = ""
    hint: str = ""


class Verification(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The result of verifying an artifact. `checks` are the row's own verdicts, recomputed if the series are included.

    `genuine`: no proof failed. `complete`: none had to be skipped. `known`: reference values cover what was installed
    where the worker ran; without them integrity and origin may hold, and what ran is unknown. `clean`: the row's
    verdict, as recomputed here; None if that was not possible.
    """

    id: str
    label: str
    genuine: bool
    complete: bool
    known: bool
    clean: bool | None
    overhead_pct: float | None
    timing_slack_pct: float | None
    proofs: tuple[Proven, ...]
    checks: tuple[dict[str, Any], ...]


def verify_bytes(text: bytes, anchors: Anchors) -> Verification:
    """Like `verify`, for an artifact's bytes; raises `RefusedError` (`artifact_malformed`, `artifact_unsigned`)."""
    return verify(parse_artifact(text), anchors)


def verify(artifact: Artifact, anchors: Anchors) -> Verification:
    """Check every proof; raises `RefusedError` (`artifact_unsigned`) for an artifact without a bundle.

    If the signatures over delegation or row are not valid, no other proof is looked at: it would cost time and memory
    for a document that anybody can write.
    """
    if artifact.bundle is None:
        raise refusal("artifact_unsigned")
    case = Case(artifact, artifact.bundle, anchors)
    proofs = tuple(judged(name, proof, case) for name, proof in PROOFS.items())
    genuine = all(proof.status != "failed" for proof in proofs)
    complete = all(proof.status != "not_checked" for proof in proofs)
    computed = genuine and complete
    return Verification(
        id=case.run_id,
        label=str(artifact.row["label"]),
        genuine=genuine,
        complete=complete,
        known=all(proof.status != "unknown" for proof in proofs),
        clean=bool(case.recomputed_row["clean"]) if computed else None,
        overhead_pct=case.recomputed_row["overheadPct"] if computed else None,
        timing_slack_pct=case.recomputed_row["timingSlackPct"] if computed else None,
        proofs=proofs,
        checks=tuple(case.recomputed_row["checks"]) if computed else (),
    )


def judged(name: str, proof: Proof, case: Case) -> Proven:
    """Check one proof as `tried` does, unless the signatures are not valid and it is about something else."""
    if name in _OF_SIGNATURES or case.is_signed:
        return tried(name, proof, case)
    return Proven(name=name, status="not_checked", reason="not looked at, since a signature is not valid")


def tried(name: str, proof: Proof, case: Case) -> Proven:
    """Check one proof; never raises, whatever the artifact contains."""
    try:
        return Proven(name=name, status="passed", reason=proof(case))
    except NotApplicableError:
        return Proven(name=name, status="not_applicable", reason="the run never came to this")
    except NotCheckedError:
        return Proven(name=name, status="not_checked", reason="the series were left out of this artifact")
    except UnknownError as error:
        return Proven(name=name, status="unknown", reason=error.message, code=error.code, hint=error.hint)
    except GlasshouseError as error:
        return Proven(name=name, status="failed", reason=error.message, code=error.code, hint=error.hint)
    except MALFORMED as error:  # an artifact may contain anything
        malformed = refusal("artifact_malformed", type(error).__name__)
        return Proven(name=name, status="failed", reason=malformed.message, code=malformed.code, hint=malformed.hint)
