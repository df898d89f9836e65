"""Statements in an allocation's log that another event contradicts; runner and `verify` judge by the same rules."""

from __future__ import annotations

from typing import Final

from engine.events import (
    AdapterCollected,
    AdapterSaved,
    AdapterSealed,
    Body,
    ChallengeTaken,
    LaunchAccepted,
    Measured,
    PackageOpened,
    SegmentState,
    TrainFinished,
    TrainStarted,
    ZeroizeDone,
    ZeroizeScan,
)
from engine.records.facts import Facts

ONCE: Final[tuple[type[Body], ...]] = (Measured, PackageOpened, AdapterSaved, AdapterSealed, ZeroizeDone)
"""What an allocation says once in a run: a second one could replace what was checked."""


def log_contradictions(facts: Facts) -> list[str]:
    """Statements of one event that another event contradicts."""
    launches = [one.body for one in facts.pod(LaunchAccepted)]
    begun = [one.body.segment for one in facts.pod(SegmentState) if one.body.state == "launching"]
    nonces = {one.body.nonce_sha256 for one in facts.pod(ChallengeTaken)}
    sealed = [one.body for one in facts.pod(AdapterSealed)]
    saved = [one.body for one in facts.pod(AdapterSaved)]
    adapters: dict[str, AdapterSaved | AdapterSealed] = {
        **{body.segment: body for body in saved},
        **{body.segment: body for body in sealed},
    }
    trained: dict[str, str] = {one.body.segment: one.body.tensor_digest for one in facts.pod(TrainFinished)}
    after = [one.body.hits for one in facts.pod(ZeroizeScan) if one.body.moment == "after"]
    statements = {
        "the order of the segments": begun != list(facts.plan.kinds())[: len(begun)],
        "the launch": len(launches) > 1,
        "an event that occurs once": any(len(facts.pod(kind)) > 1 for kind in ONCE),
        "the accelerator": any(one.body.gpu != launches[0].gpu for one in facts.pod(TrainStarted)),
        "the trained tensors": any(body.tensor_digest != trained.get(kind) for kind, body in adapters.items()),
        "the nonce of the adapter": any(body.nonce_sha256 not in nonces for body in sealed),
        "the collected adapter": any(
            adapter.status == "opened" and not _is_logged(adapter, adapters.get(kind))
            for kind, adapter in facts.collected().items()
        ),
        "the scans": not facts.wipe_faults() and any(count for hits in after for count in hits.values()),
    }
    return [what for what, contradicted in statements.items() if contradicted]


def _is_logged(collected: AdapterCollected, logged: AdapterSaved | AdapterSealed | None) -> bool:
    """Whether a downloaded adapter that was opened is the one in the allocation's log."""
    return logged is not None and (collected.sha256, collected.tensor_digest, collected.code) == (
        logged.sha256,
        logged.tensor_digest,
        None,
    )
