"""One line of `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

Status = Literal["ok", "missing", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, what to do. `needed`: the demo cannot run without it."""

    name: str
    status: Status
    detail: str
    hint: str = ""
    needed: bool = False

    def as_document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "name": self.name,
            "status": self.status,
            "detail": self.detail,
            "hint": self.hint,
            "needed": self.needed,
        }


def installed(name: str) -> str | None:
    """A distribution's version when its module can be imported, without importing it."""
    try:
        return version(name) if find_spec(name) is not None else None
    except (PackageNotFoundError, ValueError):
        return None
