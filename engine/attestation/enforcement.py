"""The controls as the processes of a segment observed them, merged into what the evidence states."""

from __future__ import annotations

from typing import Final

from engine.attestation.claims import ENFORCED, Observed
from engine.attestation.policy import CONTROLS

JUDGED: Final = ("trainer", "keyproc", "sealer", "scanner")
BUNDLE: Final = "memfd_seals"
"""The one control that no process reports: whether the memory that holds the code of all of them is sealed."""
Reports = dict[str, dict[str, dict[str, str]]]


def combined(reports: Reports, *, bundle_sealed: bool) -> dict[str, Observed]:
    """Each control as the least protected of the processes that see secrets reports it; `detail` names that process."""
    controls: dict[str, Observed] = {}
    for name in CONTROLS:
        reported = {role: reports[role][name] for role in JUDGED if name in reports.get(role, {})}
        if not reported:
            continue
        weakest = next((role for role, report in reported.items() if report["value"] != ENFORCED), None)
        role = weakest or next(iter(reported))
        controls[name] = Observed(value=reported[role]["value"], detail=f"{role}: {reported[role]['detail']}")
    controls[BUNDLE] = Observed(value=ENFORCED if bundle_sealed else "failed:unsealed", detail="bundle")
    return controls
