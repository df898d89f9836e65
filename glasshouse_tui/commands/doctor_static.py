"""`doctor --provider static`: every configured host is logged in to and tried, part by part."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.errors import GlasshouseError
from glasshouse_tui.commands.doctor_checks import Finding

if TYPE_CHECKING:
    from pathlib import Path


def examine_hosts(home: Path) -> list[Finding]:
    """A finding for each part of each host, and one for each host whose settings are not valid."""
    from engine.providers.settings import load_settings, only_host
    from engine.providers.static.provider import StaticProvider

    try:
        settings = load_settings(home)
        if not (settings.host or settings.faults):
            only_host(settings, None)
    except GlasshouseError as error:
        return [Finding("config", "missing", f"{error.code}: {error.message}", error.hint)]
    provider = StaticProvider(settings)

    async def tried(name: str) -> list[Finding]:
        return [
            Finding(
                f"host {name}: {part.name}",
                "ok" if part.passed else "missing",
                part.detail if part.passed else f"{part.code}: {part.detail}",
                part.hint,
            )
            async for part in provider.examine(name)
        ]

    async def every() -> list[list[Finding]]:
        return await asyncio.gather(*(tried(host.name) for host in settings.host))

    findings = [finding for host in asyncio.run(every()) for finding in host]
    for fault in settings.faults:
        wrong = fault.error()
        findings.append(Finding(f"host {fault.name or '?'}", "missing", f"{wrong.code}: {wrong.message}", wrong.hint))
    return findings
