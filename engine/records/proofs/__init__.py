"""Each thing that must hold for an artifact to be what it says: signatures, bindings, order, and the row recomputed.

A proof returns what it saw, or raises a `RefusedError` whose code says what is wrong. It reads what other proofs check
as it stands, so that one fault does not hide another.
"""

from __future__ import annotations

from typing import Final

from engine.records.proofs import attested, computed, logged, signed
from engine.records.proofs.case import Case, NotApplicableError, NotCheckedError, Proof

__all__ = ["PROOFS", "Case", "NotApplicableError", "NotCheckedError", "Proof"]

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
    "release": attested.release,
    "order": logged.order,
    "zeroization": attested.zeroization,
    "series": computed.series,
    "row": computed.row,
}
