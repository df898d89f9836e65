"""The scripted faults: which rules apply to which call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.fake_runpod.views import CALL_FAULTS, OPERATIONS, POD_FAULTS, Rule

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class _ActiveRule:
    rule: Rule
    after: int
    left: int | None


@dataclass(frozen=True)
class ActiveFaults:
    """The faults that apply to one call: at most one of the call itself, and all of the pod."""

    call: Rule | None = None
    pod_faults: tuple[Rule, ...] = ()

    def pod_fault(self, do: str) -> Rule | None:
        """The first fault of the pod with this name."""
        return next((rule for rule in self.pod_faults if rule.do == do), None)

    @property
    def names(self) -> str | None:
        """Their names, for the record of the call."""
        return "+".join(rule.do for rule in (self.call, *self.pod_faults) if rule is not None) or None


@dataclass
class Faults:
    """The rules in force, oldest first."""

    _rules: list[_ActiveRule] = field(default_factory=list)

    def add(self, rule: Rule) -> None:
        """Activate a rule; raises `ValueError` for one that can never apply."""
        if rule.on not in OPERATIONS:
            raise ValueError(f"no operation is called {rule.on}")
        known = (CALL_FAULTS | POD_FAULTS).get(rule.do)
        if known is None:
            raise ValueError(f"no fault is called {rule.do}")
        if not set(rule.how) <= set(known):
            raise ValueError(f"{rule.do} takes {', '.join(known) or 'no values'}")
        if rule.do in POD_FAULTS and rule.on != ("terminate" if rule.do in {"linger", "unlisted"} else "create"):
            raise ValueError(f"{rule.do} does not happen at {rule.on}")
        self._rules.append(_ActiveRule(rule, rule.after, rule.times))

    def clear(self) -> None:
        """Remove all rules."""
        self._rules.clear()

    def take(self, op: str, api: str, pods: Sequence[str]) -> ActiveFaults:
        """The faults that apply to this call, which count as used then."""
        call: Rule | None = None
        pod_faults = []
        for active in list(self._rules):
            rule = active.rule
            if rule.on not in {op, "any"} or rule.api not in {None, api}:
                continue
            if rule.pod is not None and rule.pod not in pods:
                continue
            if active.after > 0:
                active.after -= 1
                continue
            if rule.do in POD_FAULTS:
                pod_faults.append(rule)
            elif call is None:
                call = rule
            else:
                continue
            if active.left is not None:
                active.left -= 1
                if active.left <= 0:
                    self._rules.remove(active)
        return ActiveFaults(call, tuple(pod_faults))


def number(rule: Rule, name: str, default: float) -> float:
    """A number from a rule; raises `ValueError` if the value is not a number."""
    value = rule.how.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is a number")  # noqa: TRY004 - it came as JSON
    return value
