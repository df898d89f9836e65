"""Where the shipped data is: `engine/_data` in a wheel, `data/` beside `engine/` in a checkout."""

from __future__ import annotations

from pathlib import Path

from engine.errors import GlasshouseError

_PACKAGE = Path(__file__).resolve().parents[1]


def data_path(*parts: str) -> Path:
    """The path of a shipped file or folder; raises `GlasshouseError` (`install_broken`) if it is absent."""
    for root in (_PACKAGE / "_data", _PACKAGE.parent / "data"):
        candidate = root.joinpath(*parts)
        if candidate.exists():
            return candidate
    raise GlasshouseError(
        f"The installation lacks its data file {'/'.join(parts)}.",
        "Install glasshouse again.",
        code="install_broken",
    )
