"""Where runs happen: the provider protocol and its implementations."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.errors import UsageError
from engine.plan import PROVIDERS
from engine.providers.settings import only_host

if TYPE_CHECKING:
    from pathlib import Path

    from engine.providers.protocol import Device, Provider, Spec
    from engine.providers.settings import Settings


def provider_for(name: str, home: Path, settings: Settings) -> Provider:
    """The provider called `name`, for this home; only the chosen one is loaded.

    Raises `UsageError` (`provider_unknown`).
    """
    if name == "local":
        from engine.providers.local.provider import LocalProvider  # noqa: PLC0415

        return LocalProvider(home)
    if name == "static":
        from engine.providers.static.provider import StaticProvider  # noqa: PLC0415

        return StaticProvider(settings)
    if name == "runpod":
        from engine.providers.runpod.provider import RunPodProvider  # noqa: PLC0415

        return RunPodProvider(home, settings)
    raise UsageError(
        f"There is no provider called {name!r}.",
        f"Choose one of: {', '.join(PROVIDERS)}.",
        code="provider_unknown",
    )


def preflight(name: str, home: Path, settings: Settings, host: str | None = None) -> None:
    """`Provider.preflight` for callers without an event loop. Of static hosts only `host` matters, or the only one."""
    if name == "static":
        settings = only_host(settings, host)
    asyncio.run(_preflight(provider_for(name, home, settings)))


def devices_of(name: str, home: Path, settings: Settings, spec: Spec) -> tuple[Device, ...]:
    """`Provider.devices` for callers without an event loop."""
    return asyncio.run(_devices(provider_for(name, home, settings), spec))


async def _devices(provider: Provider, spec: Spec) -> tuple[Device, ...]:
    try:
        return await provider.devices(spec)
    finally:
        await provider.close()


async def _preflight(provider: Provider) -> None:
    try:
        await provider.preflight()
    finally:
        await provider.close()
