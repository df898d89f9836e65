"""Which provider a plan means."""

from __future__ import annotations

from pathlib import Path

from engine.errors import ProviderError
from engine.providers.protocol import Provider


def provider_for(name: str, home: Path) -> Provider:
    """The provider of this name; raises `ProviderError` (`provider_unknown`)."""
    if name == "local":
        from engine.providers.local import LocalProvider

        return LocalProvider(home)
    raise ProviderError(
        f"The provider {name!r} is not part of this version.",
        "Use --provider local; static hosts and RunPod come with a later version.",
        code="provider_unknown",
    )
