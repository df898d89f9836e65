"""The scripted faults: which rule strikes which call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.fake_runpod.views import CALL_FAULTS, OPERATIONS, TWISTS, Rule

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class _Live:
    rule: Rule
    after: int
    left: int | None


@dataclass(frozen=True)
class Struck:
    """What strikes one call: at most one fault of the call, and every twist of the pod."""

    call: Rule | None = None
    twists: tuple[Rule, ...] = ()

    def twist(self, do: str) -> Rule | None:
        """The first twist of that kind."""
        return next((rule for rule in self.twists if rule.do == do), None)

    @property
    def names(self) -> str | None:
        """For the record of the call."""
        return "+".join(rule.do for rule in (self.call, *self.twists) if rule is not None) or None


@dataclass
class Faults:
    """The rules in force, oldest first."""

    _live: list[_Live] = field(default_factory=list)

    def add(self, rule: Rule) -> None:
        """Put a rule into force; raises `ValueError` for one that never could strike."""
        if rule.on not in OPERATIONS:
            raise ValueError(f"no operation is called {rule.on}")
        known = (CALL_FAULTS | TWISTS).get(rule.do)
        if known is None:
            raise ValueError(f"no fault is called {rule.do}")
        if not set(rule.how) <= set(known):
            raise ValueError(f"{rule.do} takes {', '.join(known) or 'no values'}")
        if rule.do in TWISTS and rule.on != ("terminate" if rule.do == "linger" else "create"):
            raise ValueError(f"{rule.do} does not happen at {rule.on}")
        self._live.append(_Live(rule, rule.after, rule.times))

    def clear(self) -> None:
        """No faults any more."""
        self._live.clear()

    def take(self, op: str, api: str, pods: Sequence[str]) -> Struck:
        """What strikes this call; it is used up by that."""
        call: Rule | None = None
        twists = []
        for live in list(self._live):
            rule = live.rule
            if rule.on not in {op, "any"} or rule.api not in {None, api}:
                continue
            if rule.pod is not None and rule.pod not in pods:
                continue
            if live.after > 0:
                live.after -= 1
                continue
            if rule.do in TWISTS:
                twists.append(rule)
            elif call is None:
                call = rule
            else:
                continue
            if live.left is not None:
                live.left -= 1
                if live.left <= 0:
                    self._live.remove(live)
        return Struck(call, tuple(twists))


def number(rule: Rule, name: str, default: float) -> float:
    """A rule's own number; raises `ValueError` for something else."""
    value = rule.how.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is a number")  # noqa: TRY004 - it came as JSON
    return value
