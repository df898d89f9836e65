"""What the segments of a run trained: the optimiser's updates, and the samples that they were computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from engine.events import PackageSealed, TrainStarted
from engine.records.facts import Facts, bodies

PLACES: Final = 6


@dataclass(frozen=True)
class Updates:
    """By segment, its updates, settling steps included; None before those were over. `samples` as the package has."""

    updates: Mapping[str, int | None]
    samples_an_update: int
    samples: int | None

    def fields(self, updates: int | None) -> dict[str, Any]:
        """The row's fields about one segment."""
        used = None if updates is None else updates * self.samples_an_update
        epochs = None if used is None or not self.samples else round(used / self.samples, PLACES)
        return {"updates": updates, "samplesUsed": used, "epochs": epochs}


def of_segments(facts: Facts) -> Updates:
    """Count from the logs and the plan: the settling steps that ran, and the steps that were measured after it."""
    warmed = {body.segment: body.settling_steps for body in bodies(facts.pod_log, TrainStarted)}
    sealed = bodies(facts.runner_log, PackageSealed)
    counted: dict[str, int | None] = {
        segment.kind: warmed[segment.kind] + segment.steps if segment.kind in warmed else None
        for segment in facts.view.segments
    }
    return Updates(counted, facts.plan.training.samples_an_update, sealed[0].samples if sealed else None)
