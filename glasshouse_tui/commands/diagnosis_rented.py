"""What `doctor` looks at for rented pods and static hosts: settings, the key's whereabouts, the API, logins.

Nothing here spends anything, and no key or token is in any finding.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from engine.errors import GlasshouseError
from glasshouse_tui.commands.finding import Finding, installed

if TYPE_CHECKING:
    from engine.providers.settings import HostSettings, Settings

BASE_URL: Final = "RUNPOD_API_BASE_URL"
AGENT: Final = "SSH_AUTH_SOCK"
_APIS: Final = {"rest": "REST v2", "sdk": "the SDK (GraphQL)"}


def examine_rented(home: Path) -> list[Finding]:
    """Every finding, in the order in which a person reads them; asks nobody over the network."""
    settings, findings = _config(home)
    if settings is None:
        return findings
    findings += [_key(), _api(settings), _extra(settings), _ceiling(settings)]
    for host in settings.host:
        findings.append(_host(host))
    return findings


def ask_provider(home: Path, name: str) -> Finding:
    """Whether a provider could be rented from now: its own check before anything is spent, over the network."""
    from engine.providers import provider_for

    async def ask() -> None:
        provider = provider_for(name, home)
        try:
            await provider.preflight()
            await provider.reconcile([])  # asks anew where a preflight takes an answer that is moments old
        finally:
            await provider.close()

    try:
        asyncio.run(ask())
    except GlasshouseError as error:
        return Finding(f"{name} account", "missing", f"{error.code}: {error.message}", error.hint)
    return Finding(f"{name} account", "ok", "it answers, and nothing was spent")


def _config(home: Path) -> tuple[Settings | None, list[Finding]]:
    from engine.providers.settings import FILE, load_settings

    path = home / FILE
    try:
        settings = load_settings(home)
    except GlasshouseError as error:
        return None, [Finding("config", "missing", error.message, error.hint)]
    return settings, [Finding("config", "ok", str(path) if path.exists() else f"no {path}; the defaults hold")]


def _key() -> Finding:
    from engine.providers.runpod.api.credentials import api_key

    try:
        return Finding("runpod key", "ok", f"in {api_key().source}")
    except GlasshouseError as error:
        return Finding("runpod key", "missing", error.message, f"Only for rented pods. {error.hint}")


def _api(settings: Settings) -> Finding:
    chosen = _APIS[settings.runpod.api]
    given = os.environ.get(BASE_URL)
    if not given:
        return Finding("runpod api", "ok", f"{chosen}, {settings.runpod.cloud.lower()} cloud")
    try:
        host = urlsplit(given).hostname
    except ValueError:
        host = None
    if host is None:
        return Finding("runpod api", "missing", f"{BASE_URL} is no address", f"Correct {BASE_URL}, or unset it.")
    return Finding("runpod api", "ok", f"{chosen} at {host}, from {BASE_URL}")


def _extra(settings: Settings) -> Finding:
    found = installed("runpod")
    if found:
        return Finding("runpod", "ok", found)
    if settings.runpod.api == "rest":
        return Finding("runpod", "ok", 'not installed, and not needed with api = "rest"')
    return Finding(
        "runpod", "missing", 'not installed, and api = "sdk" needs it', "pip install 'glasshouse[runpod]', or use rest."
    )


def _ceiling(settings: Settings) -> Finding:
    own = settings.runpod
    if own.max_cost is None:
        return Finding("ceiling", "unknown", "none in the settings: a rented run needs --max-cost, or a preset's")
    hourly = "" if own.max_price is None else f", {own.max_price:g} USD an hour"
    return Finding("ceiling", "ok", f"{own.max_cost:g} USD a run{hourly}")


def _host(host: HostSettings) -> Finding:
    name = f"host {host.name}"
    if host.agent:
        socket = os.environ.get(AGENT)
        if socket and Path(socket).is_socket():
            return Finding(name, "ok", "its host key is pinned; an agent signs")
        return Finding(name, "missing", "it logs in with an agent, and none runs here", "Start ssh-agent and ssh-add.")
    key = Path(host.key or "").expanduser()
    if key.is_file() and os.access(key, os.R_OK):
        return Finding(name, "ok", f"its host key is pinned; logs in with {key}")
    return Finding(name, "missing", f"its key {key} cannot be read", "Correct `key` in config.toml.")
