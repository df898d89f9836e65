"""Where runs happen: the provider protocol and its implementations."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from engine.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from engine.providers.protocol import Provider

NAMES: Final = ("local", "static", "runpod")


def provider_for(name: str, home: Path) -> Provider:
    """The provider called `name`, for this home; raises `UsageError` (`provider_unknown`)."""
    if name == "local":
        from engine.providers.local.provider import LocalProvider  # noqa: PLC0415  # only the chosen one is loaded

        return LocalProvider(home)
    if name == "static":
        from engine.providers.settings import load_settings  # noqa: PLC0415
        from engine.providers.static.provider import StaticProvider  # noqa: PLC0415

        return StaticProvider(load_settings(home))
    if name == "runpod":
        from engine.providers.runpod.provider import RunPodProvider  # noqa: PLC0415
        from engine.providers.settings import load_settings  # noqa: PLC0415

        return RunPodProvider(home, load_settings(home))
    raise UsageError(
        f"There is no provider called {name!r}.",
        f"Choose one of: {', '.join(NAMES)}.",
        code="provider_unknown",
    )


def preflight(name: str, home: Path) -> None:
    """`Provider.preflight` for callers without an event loop."""
    asyncio.run(_preflight(provider_for(name, home)))


async def _preflight(provider: Provider) -> None:
    try:
        await provider.preflight()
    finally:
        await provider.close()
