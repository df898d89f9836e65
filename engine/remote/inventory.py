"""Whether the distributions in an image are those that a lock names, as far as the worker needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import RemoteError
from engine.remote.bundle import REQUIREMENTS, normalised

if TYPE_CHECKING:
    from collections.abc import Mapping


MOST_LINES: Final = 50_000
"""How many needs are looked at, each once for every extra: a few of an image's own lines could ask for millions."""


class Distribution(msgspec.Struct, frozen=True):
    """An installed distribution: its version, and its needs as its metadata writes them."""

    version: str
    requires: list[str]


def mismatches(found: Mapping[str, Distribution], locked: Mapping[str, str], markers: Mapping[str, str]) -> list[str]:
    """What is absent or at another version, each in words, in order of name.

    Raises `RemoteError` (`environment_mismatch`) where that would take too long.

    `found` is by normalised name and `markers` is the environment there (PEP 508). A distribution counts when the
    worker's needs lead to it there; a local label (`+cpu`, `+cu130`) is a build of the same release.
    """
    wrong: dict[str, str] = {}
    for name in _needed(found, markers):
        if name not in locked:
            continue
        if name not in found:
            wrong[name] = f"{name} {locked[name]} is absent"
        elif _release(found[name].version) != _release(locked[name]):
            shown = "".join(filter(str.isprintable, found[name].version[:32]))
            wrong[name] = f"{name} is {shown} and not {locked[name]}"
    return [wrong[name] for name in sorted(wrong)]


def _needed(found: Mapping[str, Distribution], markers: Mapping[str, str]) -> set[str]:
    """The worker's requirements and what they need in turn there."""
    from packaging.requirements import Requirement  # noqa: PLC0415  # for images alone

    seen: set[tuple[str, str]] = set()
    waiting = [(name, "") for name in REQUIREMENTS]
    lines = 0
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        lines += len(found[name].requires) if name in found else 0
        if lines > MOST_LINES:
            raise RemoteError(
                "The image's distributions need more of each other than can be looked at.",
                'Choose environment = "lock", or another image.',
                code="environment_mismatch",
            )
        for line in found[name].requires if name in found else ():
            try:
                needed = Requirement(line)
                wanted_here = needed.marker is None or needed.marker.evaluate({**markers, "extra": extra})
            except (ValueError, RecursionError):  # of packaging's own and of the numbers in a version
                continue  # what cannot be read cannot be needed by an installer either
            if wanted_here:
                waiting.extend((normalised(needed.name), wanted) for wanted in ("", *sorted(needed.extras)))
    return {name for name, _ in seen}


def _release(version: str) -> str:
    from packaging.version import Version  # noqa: PLC0415  # for images alone

    try:
        return Version(version).public
    except ValueError:  # no version, or one with a number of thousands of digits
        return version
