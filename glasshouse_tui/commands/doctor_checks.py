"""What `doctor` checks: each check gives findings and never raises for what a machine lacks.

Nothing here spends anything, and no key or token is in any finding.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import engine
from engine.errors import GlasshouseError

if TYPE_CHECKING:
    from engine.providers.settings import HostSettings, Settings


PYTHON: Final = (3, 11)
ROOM_BYTES: Final = 500_000_000
PROBE_SECONDS: Final = 20.0

_HARDENING_PROBE: Final = """
import json, sys
sys.path.insert(0, sys.argv[1])
from engine.worker.isolation.hardening import Options, harden
found = {name: seen.as_dict() for name, seen in harden(Options()).items()}
sys.stdout.write(json.dumps(found))
sys.stdout.flush()
"""


def examine(home: Path) -> list[Finding]:
    """Every finding about this machine and this home, in the order in which a person reads them."""
    findings: list[Finding] = []
    probes: tuple[Callable[[], list[Finding]], ...] = (
        _python,
        _base,
        _local_extra,
        lambda: _home(home),
        lambda: _database(home),
        _loopback,
        _memfd,
        _hardening,
        _terminal,
        lambda: examine_rented(home),
    )
    for probe in probes:
        findings += probe()
    return findings


def _python() -> list[Finding]:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] >= PYTHON:
        return [Finding("python", "ok", found, needed=True)]
    return [Finding("python", "missing", found, "Install Python 3.11 or newer.", needed=True)]


def _packages(names: tuple[str, ...], *, hint: str, needed: bool) -> list[Finding]:
    findings = []
    for name in names:
        found = installed(name)
        status: Status = "ok" if found else "missing"
        findings.append(Finding(name, status, found or "not installed", "" if found else hint, needed))
    return findings


def _base() -> list[Finding]:
    return _packages(
        ("cryptography", "asyncssh", "textual"),
        hint="Install glasshouse again: pip install glasshouse",
        needed=True,
    )


def _local_extra() -> list[Finding]:
    return _packages(
        ("torch", "transformers", "peft"),
        hint="Training on this machine needs the extra `local`: pip install 'glasshouse[local]'",
        needed=True,
    )


def _home(home: Path) -> list[Finding]:
    standing = next(path for path in (home, *home.parents) if path.exists())
    writable = standing.is_dir() and os.access(standing, os.W_OK | os.X_OK) and not _read_only(standing)
    findings = [
        Finding("home", "ok", str(home), needed=True)
        if writable
        else Finding(
            "home",
            "missing",
            f"{home} cannot be written",
            "Choose another with --home DIR or GLASSHOUSE_HOME, or change its permissions.",
            needed=True,
        )
    ]
    free = shutil.disk_usage(standing).free
    detail = f"{free / 1e9:.1f} GB free under {standing}"
    if free >= ROOM_BYTES:
        findings.append(Finding("disk", "ok", detail, needed=True))
    else:
        findings.append(Finding("disk", "missing", detail, "Free at least 0.5 GB there.", needed=True))
    return findings


def _read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _database(home: Path) -> list[Finding]:
    from engine.store.connection import connect, schema_version, translated
    from engine.store.home import database_path

    path = database_path(home)
    if not path.exists():
        return [Finding("database", "ok", "none yet; the first run makes it", needed=True)]
    try:
        with translated(path):
            connection = connect(path)
            try:
                number = schema_version(connection, path)
                verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            finally:
                connection.close()
    except GlasshouseError as error:
        return [Finding("database", "missing", error.message, error.hint, needed=True)]
    if verdict != "ok":
        return [Finding("database", "missing", f"{path} is damaged: {verdict}", f"Move {path} aside.", needed=True)]
    return [Finding("database", "ok", f"{path}, schema {number}, whole", needed=True)]


def _loopback() -> list[Finding]:
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
    except OSError as error:
        return [
            Finding(
                "loopback",
                "missing",
                f"no port can be opened on 127.0.0.1: {error.strerror}",
                "The local allocation is an SSH server there: allow it.",
                needed=True,
            )
        ]
    return [Finding("loopback", "ok", "a port can be opened on 127.0.0.1", needed=True)]


def _memfd() -> list[Finding]:
    try:
        os.close(os.memfd_create("glasshouse-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except (AttributeError, OSError):
        return [
            Finding(
                "memfd",
                "missing",
                "no sealed memory files",
                "The protected segment needs Linux.",
                needed=True,
            )
        ]
    return [Finding("memfd", "ok", "sealed memory files", needed=True)]


def _hardening() -> list[Finding]:
    """Every control, tried for real in a process of its own that ends afterwards."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _HARDENING_PROBE, str(Path(engine.__file__).parent.parent)],
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
            cwd="/",  # with -c the folder comes first among those that modules are imported from
        )
        seen: dict[str, dict[str, str]] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return [Finding("hardening", "unknown", f"the probe did not finish ({type(error).__name__})")]
    return [_control(name, **observed) for name, observed in seen.items()]


def _control(name: str, value: str, detail: str) -> Finding:
    shown = f"{value} ({detail})" if detail else value
    if value == "enforced":
        return Finding(name, "ok", shown)
    return Finding(
        name,
        "missing",
        shown,
        "The kernel or this account does not allow it; the evidence will say so and the policy decides.",
    )


def _terminal() -> list[Finding]:
    kind = os.environ.get("TERM", "")
    if not sys.stdout.isatty():
        return [Finding("terminal", "unknown", "stdout is not a terminal; the demo runs headless here")]
    if kind in ("", "dumb"):
        return [
            Finding(
                "terminal",
                "missing",
                f"TERM is {kind or 'not set'}",
                "Set TERM, for example to xterm-256color.",
            )
        ]
    size = shutil.get_terminal_size()
    detail = f"{kind}, {size.columns}x{size.lines}"
    if size.columns < 80 or size.lines < 24:
        return [Finding("terminal", "missing", detail, "The console wants 80x24 or more.")]
    return [Finding("terminal", "ok", detail)]


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
    from engine.providers.settings import load_settings

    async def ask() -> None:
        provider = provider_for(name, home, load_settings(home))
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
