"""Compares the distributions in an image with a lock, as far as the worker needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import RemoteError
from engine.remote.bundle import REQUIREMENTS, normalised

if TYPE_CHECKING:
    from collections.abc import Mapping


MOST_REQUIREMENTS: Final = 50_000
"""Limit on requirements to evaluate, each once per extra: a few lines of a hostile image could expand to millions."""


class Distribution(msgspec.Struct, frozen=True):
    """An installed distribution: its version, and its requirements as in its metadata."""

    version: str
    requires: list[str]


def mismatches(
    installed: Mapping[str, Distribution], locked: Mapping[str, str], markers: Mapping[str, str]
) -> list[str]:
    """A phrase for each distribution that is missing or at another version, sorted by name.

    `installed` is by normalised name, and `markers` is the environment there (PEP 508). Only the worker's requirements
    and their transitive requirements count; a local label (`+cpu`, `+cu130`) is a build of the same release. Raises
    `RemoteError` (`environment_mismatch`) if there are too many requirements to evaluate.
    """
    wrong: dict[str, str] = {}
    for name in _required(installed, markers):
        if name not in locked:
            continue
        if name not in installed:
            wrong[name] = f"{name} {locked[name]} is missing"
        elif _release(installed[name].version) != _release(locked[name]):
            shown = "".join(filter(str.isprintable, installed[name].version[:32]))
            wrong[name] = f"{name} is {shown} instead of {locked[name]}"
    return [wrong[name] for name in sorted(wrong)]


def _required(installed: Mapping[str, Distribution], markers: Mapping[str, str]) -> set[str]:
    """The names of the worker's requirements and of their transitive requirements there."""
    from packaging.requirements import Requirement  # noqa: PLC0415  # only for images

    visited: set[tuple[str, str]] = set()
    pending = [(name, "") for name in REQUIREMENTS]
    lines = 0
    while pending:
        name, extra = pending.pop()
        if (name, extra) in visited:
            continue
        visited.add((name, extra))
        lines += len(installed[name].requires) if name in installed else 0
        if lines > MOST_REQUIREMENTS:
            raise RemoteError(
                f"The image's distributions list more than {MOST_REQUIREMENTS} requirements, too many to check.",
                'Choose environment = "lock", or another image.',
                code="environment_mismatch",
            )
        for line in installed[name].requires if name in installed else ():
            try:
                requirement = Requirement(line)
                applies = requirement.marker is None or requirement.marker.evaluate({**markers, "extra": extra})
            except (ValueError, RecursionError):  # from packaging itself, and from int() on a version's digits
                continue  # an installer could not read this line either
            if applies:
                pending.extend((normalised(requirement.name), one) for one in ("", *sorted(requirement.extras)))
    return {name for name, _ in visited}


def _release(version: str) -> str:
    from packaging.version import Version  # noqa: PLC0415  # only for images

    try:
        return Version(version).public
    except ValueError:  # an invalid version, or one with thousands of digits
        return version
