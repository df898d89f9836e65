"""What the processes of a segment observed of each control, put together as the evidence states it."""

from __future__ import annotations

from typing import Final

from engine.attestation.claims import ENFORCED, Observed
from engine.attestation.policy import CONTROLS

JUDGED: Final = ("trainer", "keyproc", "sealer", "scanner")
BUNDLE: Final = "memfd_seals"
"""The one control that no process reports: whether the memory that they run from is sealed."""
Reports = dict[str, dict[str, dict[str, str]]]


def combined(reports: Reports, *, bundle_sealed: bool) -> dict[str, Observed]:
    """Each control as the weakest of the processes that see secrets has it; the detail names that process."""
    found: dict[str, Observed] = {}
    for name in CONTROLS:
        seen = {role: reports[role][name] for role in JUDGED if name in reports.get(role, {})}
        if not seen:
            continue
        weak = next((role for role, one in seen.items() if one["value"] != ENFORCED), None)
        role = weak or next(iter(seen))
        found[name] = Observed(value=seen[role]["value"], detail=f"{role}: {seen[role]['detail']}")
    found[BUNDLE] = Observed(value=ENFORCED if bundle_sealed else "failed:unsealed", detail="bundle")
    return found
