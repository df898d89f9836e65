"""The proofs of an artifact: signatures, bindings between documents, order of events, the recomputed row.

A proof returns a description of what it verified, or raises a `RefusedError` whose code says what is wrong; an
`UnknownError` says that no reference value covers it. What other proofs check is used without checking it again, so
that one fault does not hide another.
"""

from __future__ import annotations

from typing import Final

from engine.records.proofs import attested, computed, logged, signed
from engine.records.proofs.case import MALFORMED, Case, NotApplicableError, NotCheckedError, Proof, UnknownError

__all__ = ["MALFORMED", "PROOFS", "Case", "NotApplicableError", "NotCheckedError", "Proof", "UnknownError"]

PROOFS: Final[dict[str, Proof]] = {
    "parts": signed.parts,
    "signer": signed.signer,
    "delegation": signed.delegation,
    "keys_distinct": signed.keys_distinct,
    "run_receipt": signed.run_receipt,
    "logs": logged.logs,
    "challenge": attested.challenge,
    "evidence": attested.evidence,
    "result": attested.result,
    "policy": attested.policy,
    "measurement": attested.measurement,
    "environment": attested.environment,
    "release": attested.release,
    "order": logged.order,
    "zeroization": attested.zeroization,
    "series": computed.series,
    "training": computed.training,
    "row": computed.row,
}
